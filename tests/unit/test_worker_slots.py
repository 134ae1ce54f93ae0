from __future__ import annotations

import random

import pytest

import workers
from outbox.errors import ConfigurationError
from outbox.settings import Settings
from workers.slots import allowed


@pytest.mark.parametrize("seed", range(50))
def test_whatever_begins_and_ends_the_bound_holds_and_who_runs_nothing_can_begin(seed: int) -> None:
    draw = random.Random(seed)
    lanes = draw.randint(1, 8)
    total = draw.randint(lanes, 20)
    running = [0] * lanes

    def may_run(lane: int) -> int:
        return allowed(running[lane], 12, free=total - sum(running), idle=running.count(0))

    for _ in range(500):
        lane = draw.randrange(lanes)
        if draw.random() < 0.3:
            running[lane] = max(0, running[lane] - 1)
        elif running[lane] < may_run(lane):
            running[lane] += 1
        assert sum(running) <= total
        assert all(may_run(lane) >= 1 for lane in range(lanes))
        assert max(running) <= 12


def test_one_that_is_alone_has_all_but_what_is_kept_for_the_others() -> None:
    assert allowed(17, 100, free=3, idle=2) == 18
    assert allowed(18, 100, free=2, idle=2) == 18
    assert allowed(0, 100, free=2, idle=2) == 1


def test_a_bound_that_would_leave_a_handler_without_any_run_is_refused() -> None:
    app = workers.App()

    @app.handler("a")
    async def one() -> None: ...

    @app.handler("a")
    async def two() -> None: ...

    with pytest.raises(ConfigurationError, match="at least 2"):
        workers.Worker(app, Settings(), total_concurrency=1)
