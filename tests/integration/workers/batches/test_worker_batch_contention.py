"""Batches whose events others have too, and transactions that are repeated."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import workers
from outbox.settings import Settings
from workers import Event

pytestmark = pytest.mark.oldest

INSERT = text("INSERT INTO effects VALUES (:n)")
TRANSACTIONAL = pytest.mark.parametrize("kind", ["async transactional", "sync transactional"])


def numbers(events: list[Event]) -> list[int]:
    return [event.payload["n"] for event in events]


@TRANSACTIONAL
def test_events_that_another_worker_recorded_leave_the_batch_and_the_rest_commits_once(
    outbox: Any, batches: Any, work: Any, until: Any, kind: str
) -> None:
    app, runs = workers.App(), []

    def body(events: list[Event]) -> None:
        runs.append(numbers(events))
        if len(runs) == 1:
            with psycopg.connect(outbox.settings.libpq_url(), autocommit=True) as other:
                other.execute(
                    "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
                    " SELECT id, 'h', created_at, 'done', 1 FROM outbox.event WHERE (payload->>'n')::integer % 3 = 0"
                )

    batches.declare(app, kind, body, batch=10)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(10)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 10 and outbox.pending("e", "h") == 0)
        await until(lambda: not worker._lanes["h"].active)

    work(app, scenario)
    rest = [n for n in range(10) if n % 3]
    assert runs == [list(range(10)), rest]
    assert batches.effects() == rest
    assert outbox.one("SELECT max(attempts) FROM outbox.delivery") == 1


def test_two_workers_with_the_same_events_in_other_batches_apply_each_once(
    outbox: Any, batches: Any, settings: Settings, until: Any
) -> None:
    app, runs, both_in = workers.App(), [], threading.Barrier(2)

    @app.handler("e", batch=20, concurrency=1)
    def h(events: list[Event], session: Session) -> None:
        session.execute(INSERT, [{"n": n} for n in numbers(events)])
        runs.append(numbers(events))
        if len(runs) <= 2:
            both_in.wait(30)

    outbox.attach("h", "e")
    events = outbox.write("e", *({"n": n} for n in range(30)))

    async def main() -> None:
        async with workers.Worker(app, settings), workers.Worker(app, settings):
            outbox.push("e", events[:20])
            await until(lambda: len(runs) == 1)
            # The first worker is full: entries of the same events, among others, go to the other one.
            outbox.push("e", events[10:])
            await until(lambda: outbox.count("done") == 30 and outbox.pending("e", "h") == 0)

    asyncio.run(main())
    assert batches.effects() == list(range(30))
    assert len(runs[0]) == len(runs[1]) == 20


def test_an_event_whose_lease_is_lost_in_a_running_batch_is_not_committed_with_it(
    outbox: Any, batches: Any, work: Any, until: Any
) -> None:
    app, runs, inside, go = workers.App(), [], asyncio.Event(), asyncio.Event()

    @app.handler("e", batch=4)
    async def h(events: list[Event], session: AsyncSession) -> None:
        runs.append(numbers(events))
        await session.execute(INSERT, [{"n": n} for n in numbers(events)])
        inside.set()
        await go.wait()

    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(4)))

    async def scenario(worker: workers.Worker) -> None:
        await inside.wait()
        entries = outbox.redis.xpending_range("outbox:{e}", "h", "-", "+", 4)
        outbox.redis.xclaim("outbox:{e}", "h", "another", 0, [entries[1]["message_id"]])
        await until(lambda: len(worker._lanes["h"].active) == 3)
        go.set()
        await until(lambda: outbox.count("done") == 3)
        await until(lambda: outbox.pending("e", "h") == 1)

    work(app, scenario, lease=1.0, heartbeat=0.2)
    assert runs == [[0, 1, 2, 3], [0, 2, 3]]
    assert batches.effects() == [0, 2, 3]


def test_a_batch_that_lost_all_its_leases_is_cancelled(outbox: Any, work: Any, until: Any) -> None:
    app, cancelled, inside = workers.App(), [], asyncio.Event()

    @app.handler("e", batch=3)
    async def h(events: list[Event]) -> None:
        inside.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(len(events))
            raise

    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(3)))

    async def scenario(worker: workers.Worker) -> None:
        await inside.wait()
        entries = outbox.redis.xpending_range("outbox:{e}", "h", "-", "+", 3)
        outbox.redis.xclaim("outbox:{e}", "h", "another", 0, [entry["message_id"] for entry in entries])
        await until(lambda: cancelled == [3] and not worker._lanes["h"].running)

    work(app, scenario, lease=1.0, heartbeat=0.2)
    assert outbox.states() == {}


def test_a_retry_whose_lease_was_taken_leaves_the_batch(outbox: Any, batches: Any, work: Any, until: Any) -> None:
    app, runs = workers.App(), []

    def body(events: list[Event]) -> None:
        runs.append(sorted(numbers(events)))
        if len(runs) == 1:
            with psycopg.connect(outbox.settings.libpq_url(), autocommit=True) as other:
                other.execute(
                    "UPDATE outbox.delivery SET lease = gen_random_uuid(), due_at = now() + interval '1 hour'"
                    " WHERE event_id = (SELECT id FROM outbox.event WHERE payload->>'n' = '1')"
                )

    batches.declare(app, "async transactional", body, batch=3, batch_wait=0.5)
    outbox.attach("h", "e")
    outbox.write("e", *({"n": n} for n in range(3)))
    outbox.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " SELECT id, 'h', created_at, 'retrying', 1, now() FROM outbox.event"
    )

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 2)
        await until(lambda: not worker._lanes["h"].active)

    work(app, scenario)
    assert runs == [[0, 1, 2], [0, 2]]
    assert batches.effects() == [0, 2]
    assert batches.by_number() == {0: ("done", 2), 1: ("retrying", 1), 2: ("done", 2)}


@TRANSACTIONAL
def test_conflicts_and_lost_connections_are_repeated_in_place_and_divide_nothing(
    outbox: Any, batches: Any, work: Any, until: Any, kind: str
) -> None:
    app, runs = workers.App(), []

    class Failure(psycopg.errors.SerializationFailure):
        pass

    def body(events: list[Event]) -> None:
        runs.append(len(events))
        if len(runs) == 1:
            raise Failure("conflict")
        if len(runs) == 2:
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    batches.declare(app, kind, body, batch=10)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(10)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 10)

    work(app, scenario)
    assert runs == [10, 10, 10]
    assert batches.effects() == list(range(10))
    assert outbox.one("SELECT max(attempts) FROM outbox.delivery") == 1


def test_a_lost_reply_to_the_commit_of_a_batch_is_looked_up_first(
    outbox: Any, batches: Any, work: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, runs = workers.App(), []

    @app.handler("e", batch=5)
    async def h(events: list[Event], session: AsyncSession) -> Any:
        runs.append(numbers(events))
        await session.execute(INSERT, [{"n": n} for n in numbers(events)])
        return {events[0].id: workers.Snooze(3600)}

    from workers.transaction import HandlerSession

    commit = HandlerSession.commit

    def commit_and_lose_the_reply(session: HandlerSession) -> None:
        commit(session)
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(HandlerSession, "commit", commit_and_lose_the_reply)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(5)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 4)
        await until(lambda: outbox.pending("e", "h") == 0 and not worker._lanes["h"].active)

    work(app, scenario)
    assert runs == [[0, 1, 2, 3, 4]]
    assert batches.effects() == [0, 1, 2, 3, 4]
    assert outbox.count("done") == 4
