"""A stream that is trimmed past what a worker holds: Redis forgets such entries, the worker must not lose them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import workers
from outbox.names import stream_key

pytestmark = pytest.mark.oldest

KEY = stream_key("outbox", "e")
PATIENCE: dict[str, Any] = {"lease": 1.0, "heartbeat": 0.2}

HELD = "SELECT count(*) FROM outbox.delivery WHERE state = 'retrying' AND lease IS NOT NULL AND attempts = 0"
HOLES = (
    "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
    " SELECT id, 'h', created_at, 'retrying', 0, now() FROM outbox.event ON CONFLICT DO NOTHING"
)
"""What the sweep does for events that are not pending and have no row."""


@pytest.mark.parametrize("transactional", [False, True])
def test_what_a_worker_holds_beyond_the_cut_is_run_once(
    transactional: bool, outbox: Any, work: Any, until: Any
) -> None:
    app, go, started = workers.App(), asyncio.Event(), []

    async def wait(n: int) -> None:
        started.append(n)
        await go.wait()

    async def wait_in_transaction(n: int, session: AsyncSession) -> None:
        await session.execute(text("SELECT 1"))
        await wait(n)

    app.handler("e", name="h", concurrency=2)(wait_in_transaction if transactional else wait)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(10)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: len(started) == 2)
        held = outbox.pending("e", "h")
        outbox.redis.xtrim(KEY, maxlen=0, approximate=False)
        await until(lambda: outbox.one(HELD) == held)
        await until(lambda: outbox.pending("e", "h") == 0)
        outbox.sql.execute(HOLES)
        # Longer than the leases: they are renewed.
        expiry = outbox.one("SELECT max(due_at) FROM outbox.delivery WHERE lease IS NOT NULL")
        await until(lambda: outbox.one("SELECT clock_timestamp() > %s", expiry))
        go.set()
        await until(lambda: outbox.count("done") == 10)
        await until(lambda: not worker._lanes["h"].active)

    work(app, scenario, **PATIENCE)
    assert sorted(started) == list(range(10))
    assert outbox.one("SELECT min(attempts), max(attempts), max(crashes) FROM outbox.delivery") == (1, 1, 0)


def test_a_worker_that_stops_leaves_what_its_stream_was_trimmed_past_to_postgresql(
    outbox: Any, work: Any, until: Any
) -> None:
    app, go, started = workers.App(), asyncio.Event(), []

    @app.handler("e", concurrency=1)
    async def h(n: int) -> None:
        started.append(n)
        if n == 100:
            await go.wait()

    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        # A handler that is quick at first may hold more than it can run.
        outbox.publish("e", *({"n": n} for n in range(100)))
        await until(lambda: outbox.count("done") == 100 and outbox.pending("e", "h") == 0)
        outbox.publish("e", *({"n": n} for n in range(100, 105)))
        await until(lambda: started[-1] == 100 and outbox.pending("e", "h") > 1)
        waiting = outbox.pending("e", "h") - 1
        outbox.redis.xtrim(KEY, maxlen=0, approximate=False)
        stopping = asyncio.create_task(worker.stop())
        await until(lambda: outbox.count("retrying") == waiting and outbox.pending("e", "h") == 1)
        go.set()
        await stopping

    # No heartbeat notices it before.
    work(app, scenario, lease=60.0, heartbeat=20.0)
    assert started == list(range(101))
    assert outbox.one("SELECT max(attempts + crashes) FROM outbox.delivery WHERE state = 'retrying'") == 0
    assert outbox.pending("e", "h") == 0


def test_an_outcome_that_is_decided_while_its_lease_moves_is_recorded(outbox: Any, work: Any, until: Any) -> None:
    app, go, started = workers.App(), asyncio.Event(), []

    @app.handler("e")
    async def h(n: int) -> None:
        started.append(n)
        await go.wait()

    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(10)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: len(started) == 10)
        outbox.redis.xtrim(KEY, maxlen=0, approximate=False)
        (source,) = (source for source in worker._sources if source.main)
        moving = asyncio.create_task(worker._leases._hold(source, set(source.inflight)))
        while not worker._recorder.between_batches.locked():
            await asyncio.sleep(0)
        go.set()
        await moving
        await until(lambda: outbox.count("done") == 10)

    work(app, scenario, **PATIENCE)
    assert sorted(started) == list(range(10))
    assert outbox.one("SELECT count(*) FROM outbox.delivery WHERE lease IS NOT NULL") == 0


def test_what_somebody_else_gave_a_row_meanwhile_is_not_started_here_as_well(
    outbox: Any, work: Any, until: Any
) -> None:
    app, go, started = workers.App(), asyncio.Event(), []

    @app.handler("e", concurrency=1)
    async def h(n: int) -> None:
        started.append(n)
        if n == 100:
            await go.wait()

    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        # A handler that is quick at first may hold more than it can run.
        outbox.publish("e", *({"n": n} for n in range(100)))
        await until(lambda: outbox.count("done") == 100 and outbox.pending("e", "h") == 0)
        outbox.publish("e", {"n": 100})
        await until(lambda: started[-1] == 100)
        outbox.publish("e", {"n": 101})
        await until(lambda: outbox.pending("e", "h") == 2)
        outbox.sql.execute(
            "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
            " SELECT id, 'h', created_at, 'done', 1 FROM outbox.event WHERE payload->>'n' = '101'"
        )
        outbox.redis.xtrim(KEY, maxlen=0, approximate=False)
        await until(lambda: outbox.pending("e", "h") == 0)
        go.set()
        await until(lambda: outbox.count("done") == 102)

    work(app, scenario, **PATIENCE)
    assert started == list(range(101))
