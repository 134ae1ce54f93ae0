"""What becomes of the events of a batch: dividing one that failed, and an outcome for each."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import workers
from workers import Event

INSERT = text("INSERT INTO effects VALUES (:n)")
FAST = workers.Backoff(initial=0.01, jitter=0)
TRANSACTIONAL = pytest.mark.parametrize("kind", ["async transactional", "sync transactional"])


def numbers(events: list[Event]) -> list[int]:
    return [event.payload["n"] for event in events]


@pytest.mark.parametrize("size", [64, 100])
def test_one_bad_event_does_not_condemn_its_batch_and_alone_costs_attempts(
    outbox: Any, batches: Any, work: Any, until: Any, kind: str, size: int
) -> None:
    app, runs = workers.App(), []

    def body(events: list[Event]) -> None:
        runs.append(numbers(events))
        if 7 in numbers(events):
            raise ValueError("seven")

    batches.declare(app, kind, body, batch=size, max_attempts=2, backoff=FAST)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(size)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == size - 1 and outbox.count("dead") == 1)

    work(app, scenario)
    # The batch; two for each halving, of which there are at most log2, rounded up; and the second attempt, alone.
    halvings = (size - 1).bit_length()
    assert len(runs) <= 1 + 2 * halvings + 1
    assert outbox.one("SELECT max(attempts) FROM outbox.delivery WHERE state = 'done'") == 1
    assert outbox.one("SELECT attempts, payload FROM outbox.dead_letter") == (2, {"n": 7})
    if "transactional" in kind:
        assert batches.effects() == [n for n in range(size) if n != 7]
    else:
        # At least once: an event of a plain batch runs again with each half that it is in.
        assert max(Counter(n for run in runs for n in run if n != 7).values()) <= 1 + halvings


def test_when_every_event_is_bad_each_costs_one_attempt_and_less_than_two_runs(
    outbox: Any, batches: Any, work: Any, until: Any
) -> None:
    app, runs = workers.App(), []

    def body(events: list[Event]) -> None:
        runs.append(len(events))
        raise ValueError("all")

    batches.declare(app, "async transactional", body, batch=32, max_attempts=1)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(32)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 32)

    work(app, scenario)
    assert len(runs) == 2 * 32 - 1
    assert batches.effects() == []
    assert outbox.one("SELECT min(attempts), max(attempts) FROM outbox.delivery") == (1, 1)


def test_what_an_event_raises_when_it_is_alone_means_what_it_means_for_one(
    outbox: Any, batches: Any, work: Any, until: Any
) -> None:
    app = workers.App()
    asked: dict[int, Exception] = {
        3: workers.Reject("no such order"),
        5: workers.RetryLater(3600, "closed"),
        6: workers.Snooze(3600),
    }

    def body(events: list[Event]) -> None:
        for n in numbers(events):
            if n in asked:
                raise asked[n]

    batches.declare(app, "async transactional", body, batch=8)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(8)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: len(outbox.states()) == 8)

    work(app, scenario)
    assert batches.by_number() == dict.fromkeys(range(8), ("done", 1)) | {
        3: ("dead", 1),
        5: ("retrying", 1),
        6: ("retrying", 0),
    }
    assert batches.effects() == [0, 1, 2, 4, 7]


@pytest.mark.parametrize("shape", ["list", "dict", "dict of failures"])
def test_a_handler_may_return_an_outcome_for_each_event_and_nothing_runs_twice(
    outbox: Any, batches: Any, work: Any, until: Any, kind: str, shape: str
) -> None:
    app, runs = workers.App(), []
    asked: dict[int, Exception] = {
        3: workers.Reject("no such order"),
        5: workers.RetryLater(3600, "closed"),
        6: workers.Snooze(3600),
        7: ValueError("seven"),
    }

    def body(events: list[Event]) -> Any:
        runs.append(numbers(events))
        if shape == "list":
            return [asked.get(n) for n in numbers(events)]
        answers = {event.id: asked.get(event.payload["n"]) for event in events}
        return answers if shape == "dict" else {key: error for key, error in answers.items() if error}

    batches.declare(app, kind, body, batch=8, backoff=workers.Backoff(initial=3600))
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(8)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: len(outbox.states()) == 8 and outbox.pending("e", "h") == 0)

    work(app, scenario)
    assert runs == [list(range(8))]
    assert batches.by_number() == dict.fromkeys(range(8), ("done", 1)) | {
        3: ("dead", 1),
        5: ("retrying", 1),
        6: ("retrying", 0),
        7: ("retrying", 1),
    }
    letter = outbox.one("SELECT error, payload FROM outbox.dead_letter")
    assert letter == ("rejected: no such order", {"n": 3})
    # What a transactional batch wrote commits with all of its outcomes.
    assert batches.effects() == (list(range(8)) if "transactional" in kind else [])


@TRANSACTIONAL
def test_outcomes_of_retries_are_recorded_in_the_transaction_too(
    outbox: Any, batches: Any, work: Any, until: Any, kind: str
) -> None:
    app, runs = workers.App(), []

    def body(events: list[Event]) -> Any:
        runs.append(sorted(numbers(events)))
        if len(runs) == 1:
            return [ValueError(str(n)) for n in numbers(events)]
        return {e.id: workers.Reject("3") if e.payload["n"] == 3 else ValueError() for e in events if e.payload["n"]}

    batches.declare(app, kind, body, batch=4, batch_wait=0.5, max_attempts=2, backoff=FAST)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(4)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1 and outbox.count("dead") == 3)

    work(app, scenario)
    assert runs == [[0, 1, 2, 3]] * 2
    assert batches.by_number() == {0: ("done", 2), 1: ("dead", 2), 2: ("dead", 2), 3: ("dead", 2)}
    assert batches.effects() == sorted([0, 1, 2, 3] * 2)


@pytest.mark.parametrize("returned", [[None], ["ok"] * 4, {"no such id": None}, 7, "done"])
def test_an_answer_that_is_none_fails_every_event_with_advice_and_divides_nothing(
    outbox: Any, batches: Any, work: Any, until: Any, returned: Any
) -> None:
    app, runs = workers.App(), []

    def body(events: list[Event]) -> Any:
        runs.append(len(events))
        return returned

    batches.declare(app, "async transactional", body, batch=4, max_attempts=1)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(4)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 4)

    work(app, scenario)
    assert runs == [4]
    assert batches.effects() == []
    errors = {row[0] for row in outbox.sql.execute("SELECT error FROM outbox.dead_letter").fetchall()}
    assert all("a list in their order or a dict by event.id" in error for error in errors)


def test_the_timeout_is_that_of_a_run_and_the_event_that_hangs_is_found(
    outbox: Any, batches: Any, work: Any, until: Any, kind: str
) -> None:
    app, timed_out = workers.App(), []
    hanging = text("SELECT pg_sleep(60)")
    options: Any = {"batch": 4, "timeout": 0.4, "max_attempts": 1}

    def spin(events: list[Event]) -> None:
        if 2 in numbers(events):
            timed_out.append(len(events))
            while True:
                time.sleep(0.001)

    if kind == "async transactional":

        @app.handler("e", name="h", **options)
        async def _(events: list[Event], session: AsyncSession) -> None:
            await session.execute(INSERT, [{"n": n} for n in numbers(events)])
            if 2 in numbers(events):
                timed_out.append(len(events))
                await session.execute(hanging)

    elif kind == "async plain":

        @app.handler("e", name="h", **options)
        async def _(events: list[Event]) -> None:
            if 2 in numbers(events):
                timed_out.append(len(events))
                await asyncio.sleep(60)

    else:
        batches.declare(app, kind, spin, **options)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(4)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 3 and outbox.count("dead") == 1)

    work(app, scenario)
    assert timed_out == [4, 2, 1]
    assert batches.by_number()[2] == ("dead", 1)
    assert "timed out after 0.4 s" in outbox.one("SELECT error FROM outbox.dead_letter")
    assert batches.effects() == ([0, 1, 3] if "transactional" in kind else [])
