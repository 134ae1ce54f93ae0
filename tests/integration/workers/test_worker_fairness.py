"""One handler with a long stream beside others: who runs, how much is fetched, and what is handed back."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import workers
from workers import prefetch


@pytest.mark.parametrize("batch", [None, 2])
def test_within_a_bound_for_all_a_slow_handler_with_a_long_stream_starves_no_other(
    batch: int | None, outbox: Any, work: Any, until: Any
) -> None:
    app, gate = workers.App(), asyncio.Event()
    now, most, slow_now = 0, 0, 0

    async def count(wait: bool) -> None:
        nonlocal now, most, slow_now
        now, slow_now = now + 1, slow_now + wait
        most = max(most, now)
        await (gate.wait() if wait else asyncio.sleep(0.001))
        now, slow_now = now - 1, slow_now - wait

    if batch is None:

        @app.handler("e", name="slow")
        async def slow() -> None:
            await count(True)
    else:

        @app.handler("e", name="slow", batch=batch, concurrency=100)
        async def slow_batch(events: list[workers.Event]) -> None:
            await count(True)

    @app.handler("e")
    async def quick() -> None:
        await count(False)

    @app.handler("f")
    async def late() -> None:
        await count(False)

    for name, event in (("slow", "e"), ("quick", "e"), ("late", "f")):
        outbox.attach(name, event)
    outbox.publish("e", *({} for _ in range(200)))
    done = "SELECT count(*) FROM outbox.delivery WHERE handler = %s"

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.one(done, "quick") == 200)
        # It has all that is not kept for others, and no more.
        await until(lambda: slow_now == 4)
        outbox.publish("f", *({} for _ in range(50)))
        await until(lambda: outbox.one(done, "late") == 50)
        assert outbox.one(done, "slow") == 0
        gate.set()
        await until(lambda: outbox.one(done, "slow") == 200)

    work(app, scenario, total_concurrency=6)
    assert most <= 6


def test_handlers_that_are_all_busy_take_turns(outbox: Any, work: Any, until: Any) -> None:
    app, begun = workers.App(), []
    gate = asyncio.Event()

    def busy(name: str) -> None:
        @app.handler(name, name=name)
        async def h() -> None:
            begun.append(name)
            await gate.wait()
            await asyncio.sleep(0.001)

    for name in "abc":
        busy(name)
        outbox.attach(name, name)
        outbox.publish(name, *({} for _ in range(100)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: len(begun) == 5 and all(outbox.pending(name, name) >= 90 for name in "abc"))
        gate.set()
        await until(lambda: outbox.count("done") == 300)

    work(app, scenario, total_concurrency=5)
    turns = begun[10:200]
    assert all(len(set(turns[start : start + 6])) == 3 for start in range(len(turns) - 6))


@pytest.mark.parametrize(("size", "events", "most"), [(10, 8000, prefetch.LARGEST), (64 * 1024, 900, prefetch.MEMORY)])
def test_what_is_fetched_is_bounded_in_entries_and_bytes(
    size: int, events: int, most: int, outbox: Any, work: Any, until: Any
) -> None:
    app, gate, text = workers.App(), asyncio.Event(), "x" * size
    begun = 0

    @app.handler("e", concurrency=10, timeout=300)
    async def h(text: str) -> None:
        nonlocal begun
        begun += 1
        # Quick at first, so that the window grows as far as it may.
        if begun > events // 2:
            await gate.wait()

    outbox.attach("h", "e")
    outbox.publish("e", *({"text": text} for _ in range(events)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: begun == events // 2 + 10 and outbox.count("done") == events // 2)
        held = outbox.pending("e", "h")
        assert 10 < held < events // 2
        assert held * (1 if size == 10 else size) <= most
        gate.set()
        await until(lambda: outbox.count("done") == events)

    work(app, scenario)


HOLDING = """
import asyncio
from pathlib import Path
import workers
app = workers.App()

@app.handler("e", concurrency=1, timeout=60)
async def h(hold: bool) -> None:
    if hold:
        Path("inside").touch()
        while not Path("go").exists():
            await asyncio.sleep(0.01)
"""


def test_what_is_fetched_and_not_begun_is_handed_back_while_what_runs_still_runs(
    outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("h", "e")
    worker = start(HOLDING)
    outbox.publish("e", *({"hold": False} for _ in range(30)))
    wait_for(lambda: outbox.count("done") == 30)
    outbox.publish("e", *({"hold": True} for _ in range(6)))
    wait_for(lambda: (tmp_path / "inside").exists() and outbox.pending("e", "h") >= 3)
    worker.signal(signal.SIGTERM)

    def handed_back() -> int:
        entries = outbox.redis.xpending_range("outbox:{e}", "h", "-", "+", 10)
        return len([entry for entry in entries if entry["time_since_delivered"] > 10**9])

    wait_for(lambda: handed_back() >= 2 and handed_back() == outbox.pending("e", "h") - 1)
    assert worker.popen.poll() is None
    (tmp_path / "go").touch()
    assert worker.wait() == 0
    assert outbox.count("done") == 31


TWO = """
import workers
app = workers.App()

@app.handler("e")
async def one() -> None: ...

@app.handler("e")
async def two() -> None: ...
"""


def test_a_bound_from_the_command_line_that_is_too_small_for_the_handlers_is_refused(start: Callable[..., Any]) -> None:
    worker = start(TWO, "--total-concurrency", "1")
    assert worker.wait() == 2
    assert "total_concurrency must be at least 2" in worker.output()
