"""Handlers with `batch=`: what a run gets, when it begins, and that it is one transaction."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

import workers
from workers import Event

TRANSACTIONAL = pytest.mark.parametrize("kind", ["async transactional", "sync transactional"])


def numbers(events: list[Event]) -> list[int]:
    return [event.payload["n"] for event in events]


def test_a_run_gets_up_to_batch_events_and_each_has_its_outcome(
    outbox: Any, batches: Any, work: Any, until: Any, kind: str
) -> None:
    app, sizes, seen = workers.App(), [], []

    def body(events: list[Event]) -> None:
        sizes.append(len(events))
        seen.extend(numbers(events))

    batches.declare(app, kind, body, batch=50, batch_wait=0.2)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(500)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 500 and outbox.pending("e", "h") == 0)

    work(app, scenario)
    assert sorted(seen) == list(range(500))
    assert sizes == [50] * 10
    assert batches.effects() == (list(range(500)) if "transactional" in kind else [])
    assert outbox.one("SELECT max(attempts) FROM outbox.delivery") == 1


def test_a_batch_that_does_not_fill_waits_for_more_and_no_longer_than_batch_wait(
    outbox: Any, work: Any, until: Any
) -> None:
    app, runs = workers.App(), []

    @app.handler("e", batch=100, batch_wait=0.5)
    async def h(events: list[Event]) -> None:
        runs.append((time.monotonic(), numbers(events)))

    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        lane = worker._lanes["h"]
        began = time.monotonic()
        outbox.publish("e", {"n": 1})
        await until(lambda: len(lane.active) == 1)
        outbox.publish("e", {"n": 2})
        await until(lambda: outbox.count("done") == 2)
        (moment, found), *others = runs
        assert not others
        assert found == [1, 2]
        assert 0.5 <= moment - began < 5

    work(app, scenario)


def test_a_full_batch_does_not_wait(outbox: Any, work: Any, until: Any) -> None:
    app, runs = workers.App(), []

    @app.handler("e", batch=10, batch_wait=60)
    async def h(events: list[Event]) -> None:
        runs.append(numbers(events))

    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(20)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 20)

    work(app, scenario)
    assert [len(run) for run in runs] == [10, 10]


def test_what_waits_for_company_when_the_worker_stops_is_handed_back(outbox: Any, work: Any, until: Any) -> None:
    app = workers.App()

    @app.handler("e", batch=10, batch_wait=60)
    async def h(events: list[Event]) -> None: ...

    outbox.attach("h", "e")
    outbox.publish("e", {"n": 1})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: len(worker._lanes["h"].active) == 1)

    work(app, scenario)
    (entry,) = outbox.redis.xpending_range("outbox:{e}", "h", "-", "+", 10)
    assert entry["time_since_delivered"] > 10**9


@TRANSACTIONAL
def test_effects_and_all_rows_of_a_batch_are_one_transaction(
    outbox: Any, batches: Any, work: Any, until: Any, kind: str
) -> None:
    app = workers.App()
    batches.declare(app, kind, lambda events: None, batch=40)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(40)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 40)

    work(app, scenario)
    rows = "SELECT DISTINCT xmin::text FROM outbox.delivery UNION SELECT DISTINCT xmin::text FROM effects"
    assert outbox.one(f"SELECT count(*) FROM ({rows}) AS written") == 1


def test_leases_of_all_events_of_a_running_batch_are_renewed(outbox: Any, work: Any, until: Any, kind: str) -> None:
    app, runs, inside, go = workers.App(), [], threading.Event(), threading.Event()

    async def wait_there() -> None:
        while not go.is_set():
            await asyncio.sleep(0.01)

    if "async" in kind:

        @app.handler("e", batch=6, batch_wait=0.5)
        async def h(events: list[Event]) -> None:
            runs.append(sorted(numbers(events)))
            inside.set()
            await wait_there()

    else:

        @app.handler("e", batch=6, batch_wait=0.5)
        def h(events: list[Event]) -> None:
            runs.append(sorted(numbers(events)))
            inside.set()
            go.wait(60)

    outbox.attach("h", "e")
    outbox.write("e", *({"n": n} for n in range(3)))
    outbox.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " SELECT id, 'h', created_at, 'retrying', 1, now() FROM outbox.event"
    )
    outbox.publish("e", *({"n": n} for n in range(3, 6)))

    async def scenario(worker: workers.Worker) -> None:
        await until(inside.is_set)
        began = time.monotonic()
        await until(lambda: time.monotonic() - began > 1.5)
        idle = [entry["time_since_delivered"] for entry in outbox.redis.xpending_range("outbox:{e}", "h", "-", "+", 9)]
        assert len(idle) == 3
        assert max(idle) < 1000
        assert outbox.one("SELECT count(*) FROM outbox.delivery WHERE due_at > now() AND lease IS NOT NULL") == 3
        go.set()
        await until(lambda: outbox.count("done") == 6)

    work(app, scenario, lease=1.0, heartbeat=0.2)
    assert runs == [[0, 1, 2, 3, 4, 5]]


def test_what_was_divided_when_the_worker_stops_is_handed_back_at_no_cost(outbox: Any, work: Any, until: Any) -> None:
    app, inside, go = workers.App(), asyncio.Event(), asyncio.Event()

    @app.handler("e", batch=4)
    async def h(events: list[Event]) -> None:
        inside.set()
        await go.wait()
        raise ValueError("one of them")

    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(4)))

    async def scenario(worker: workers.Worker) -> None:
        await inside.wait()
        worker.request_stop()
        await until(lambda: worker._lanes["h"].stopping)
        go.set()

    work(app, scenario)
    entries = outbox.redis.xpending_range("outbox:{e}", "h", "-", "+", 10)
    assert len(entries) == 4
    assert all(entry["time_since_delivered"] > 10**9 for entry in entries)
    assert outbox.states() == {}
