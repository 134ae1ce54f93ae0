"""Batch middleware in real runs: around every run of a batch, with its COMMIT."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

import workers
from workers import Event
from workers.transaction import HandlerSession

TRANSACTIONAL = pytest.mark.parametrize("kind", ["async transactional", "sync transactional"])
SEEN: ContextVar[str] = ContextVar("SEEN", default="nothing")


def numbers(events: Sequence[Event]) -> list[int]:
    return [event.payload["n"] for event in events]


def test_it_sees_every_run_of_a_divided_batch_and_its_context_variables_reach_the_handler(
    outbox: Any, batches: Any, work: Any, until: Any, kind: str
) -> None:
    app, seen = workers.App(), []

    @app.batch_middleware
    async def watch(events: Sequence[Event], next: workers.BatchNext) -> workers.Outcomes:
        before = SEEN.get()
        SEEN.set("by the handler")
        try:
            found = await next(events)
        except ValueError as error:
            seen.append((before, numbers(events), str(error)))
            raise
        seen.append((before, numbers(events), [type(found[event.id]).__name__ for event in events]))
        return found

    def body(events: list[Event]) -> Any:
        if 3 in numbers(events):
            raise ValueError(f"seen {SEEN.get()}")
        return {event.id: workers.Reject("zero") for event in events if event.payload["n"] == 0}

    batches.declare(app, kind, body, batch=4, max_attempts=1)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(4)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 2 and outbox.count("dead") == 2)

    with capture_logs() as logs:
        work(app, scenario)
    assert sorted(seen, key=lambda each: each[1]) == [
        ("nothing", [0, 1], ["Dead", "Done"]),
        ("nothing", [0, 1, 2, 3], "seen by the handler"),
        ("nothing", [2], ["Done"]),
        ("nothing", [2, 3], "seen by the handler"),
        ("nothing", [3], "seen by the handler"),
    ]
    assert batches.by_number() == {0: ("dead", 1), 1: ("done", 1), 2: ("done", 1), 3: ("dead", 1)}
    assert batches.effects() == ([0, 1, 2] if "transactional" in kind else [])
    told = [(each["event"], each["error"]) for each in logs if each["event"].startswith("delivery.")]
    assert sorted(told) == [("delivery.dead", "Reject"), ("delivery.dead", "ValueError")]


def test_outcomes_that_it_gives_to_a_batch_that_failed_are_recorded_and_nothing_is_divided(
    outbox: Any, batches: Any, work: Any, until: Any, kind: str
) -> None:
    app, runs = workers.App(), []

    @app.batch_middleware
    async def outage(events: Sequence[Event], next: workers.BatchNext) -> workers.Outcomes:
        try:
            return await next(events)
        except ConnectionError:
            one, *others = events
            return {one.id: workers.Done()} | {event.id: workers.Retry(3600, "away") for event in others}

    def body(events: list[Event]) -> None:
        runs.append(len(events))
        raise ConnectionError

    batches.declare(app, kind, body, batch=4)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(4)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("retrying") == 3 and outbox.count("done") == 1)

    with capture_logs() as logs:
        work(app, scenario)
    assert runs == [4]
    assert batches.effects() == []
    assert [each["delay"] for each in logs if each["event"] == "delivery.retry"] == [3600.0] * 3


@TRANSACTIONAL
def test_what_a_batch_committed_is_in_postgresql_before_it_sees_it_and_stays(
    outbox: Any, batches: Any, work: Any, until: Any, kind: str
) -> None:
    app = workers.App()

    @app.batch_middleware
    async def doubt(events: Sequence[Event], next: workers.BatchNext) -> workers.Outcomes:
        found = await next(events)
        assert outbox.count("done") == len(found) == 2
        return {event.id: workers.Dead("too late") for event in events}

    batches.declare(app, kind, lambda events: None, batch=2)
    outbox.attach("h", "e")
    outbox.publish("e", {"n": 0}, {"n": 1})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 2 and outbox.pending("e", "h") == 0)

    with capture_logs() as logs:
        work(app, scenario)
    (told,) = [each for each in logs if each["event"] == "middleware.too_late"]
    assert "too late" in told["outcome"]
    assert batches.effects() == [0, 1]
    assert outbox.count("dead") == 0


@TRANSACTIONAL
def test_failures_of_a_transaction_that_is_repeated_are_told_once(
    outbox: Any, batches: Any, work: Any, until: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:

    app, commit, commits = workers.App(), HandlerSession.commit, []

    def fail_once(session: HandlerSession) -> None:
        commits.append(session)
        if len(commits) == 1:
            raise psycopg.errors.SerializationFailure
        commit(session)

    monkeypatch.setattr(HandlerSession, "commit", fail_once)
    batches.declare(app, kind, lambda events: [None, ValueError("one")], batch=2)
    outbox.attach("h", "e")
    outbox.publish("e", {"n": 0}, {"n": 1})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1 and outbox.count("retrying") == 1)

    with capture_logs() as logs:
        work(app, scenario)
    assert len(commits) == 2
    assert [each["event_id"] for each in logs if each["event"] == "delivery.retry"] == [
        str(outbox.one("SELECT event_id FROM outbox.delivery WHERE state = 'retrying'"))
    ]
