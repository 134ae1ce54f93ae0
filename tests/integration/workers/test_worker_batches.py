"""Handlers with `batch=`: gathering, one transaction for all, dividing what failed, outcomes for each."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import workers
from outbox.settings import Settings
from workers import Event

INSERT = text("INSERT INTO effects VALUES (:n)")
FAST = workers.Backoff(initial=0.01, jitter=0)


@pytest.fixture(autouse=True)
def _effects(outbox: Any) -> None:
    # Without a unique key, so that a second application shows.
    outbox.sql.execute("CREATE TABLE effects (n integer)")


def effects(outbox: Any) -> list[int]:
    return [row[0] for row in outbox.sql.execute("SELECT n FROM effects ORDER BY n").fetchall()]


def numbers(events: list[Event]) -> list[int]:
    return [event.payload["n"] for event in events]


KINDS = ["async plain", "sync plain", "async transactional", "sync transactional"]
EVERY = pytest.mark.parametrize("kind", KINDS)
TRANSACTIONAL = pytest.mark.parametrize("kind", KINDS[2:])


def declare(app: workers.App, kind: str, body: Callable[[list[Event]], Any], **options: Any) -> None:
    """A batch handler `h` of `e`: if it is transactional it inserts each event's number, then the body is run."""
    if kind == "async plain":

        @app.handler("e", name="h", **options)
        async def _(events: list[Event]) -> Any:
            return body(events)

    elif kind == "sync plain":

        @app.handler("e", name="h", **options)
        def _(events: list[Event]) -> Any:
            return body(events)

    elif kind == "async transactional":

        @app.handler("e", name="h", **options)
        async def _(events: list[Event], session: AsyncSession) -> Any:
            await session.execute(INSERT, [{"n": n} for n in numbers(events)])
            return body(events)

    else:

        @app.handler("e", name="h", **options)
        def _(events: list[Event], session: Session) -> Any:
            session.execute(INSERT, [{"n": n} for n in numbers(events)])
            return body(events)


@EVERY
def test_a_run_gets_up_to_batch_events_and_each_has_its_outcome(outbox: Any, work: Any, until: Any, kind: str) -> None:
    app, sizes, seen = workers.App(), [], []

    def body(events: list[Event]) -> None:
        sizes.append(len(events))
        seen.extend(numbers(events))

    declare(app, kind, body, batch=50, batch_wait=0.2)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(500)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 500 and outbox.pending("e", "h") == 0)

    work(app, scenario)
    assert sorted(seen) == list(range(500))
    assert sizes == [50] * 10
    assert effects(outbox) == (list(range(500)) if "transactional" in kind else [])
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


@EVERY
@pytest.mark.parametrize("size", [64, 100])
def test_one_bad_event_does_not_condemn_its_batch_and_alone_costs_attempts(
    outbox: Any, work: Any, until: Any, kind: str, size: int
) -> None:
    app, runs = workers.App(), []

    def body(events: list[Event]) -> None:
        runs.append(numbers(events))
        if 7 in numbers(events):
            raise ValueError("seven")

    declare(app, kind, body, batch=size, max_attempts=2, backoff=FAST)
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
        assert effects(outbox) == [n for n in range(size) if n != 7]
    else:
        # At least once: an event of a plain batch runs again with each half that it is in.
        assert max(Counter(n for run in runs for n in run if n != 7).values()) <= 1 + halvings


def test_when_every_event_is_bad_each_costs_one_attempt_and_less_than_two_runs(
    outbox: Any, work: Any, until: Any
) -> None:
    app, runs = workers.App(), []

    def body(events: list[Event]) -> None:
        runs.append(len(events))
        raise ValueError("all")

    declare(app, "async transactional", body, batch=32, max_attempts=1)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(32)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 32)

    work(app, scenario)
    assert len(runs) == 2 * 32 - 1
    assert effects(outbox) == []
    assert outbox.one("SELECT min(attempts), max(attempts) FROM outbox.delivery") == (1, 1)


def test_what_an_event_raises_when_it_is_alone_means_what_it_means_for_one(outbox: Any, work: Any, until: Any) -> None:
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

    declare(app, "async transactional", body, batch=8)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(8)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: len(outbox.states()) == 8)

    work(app, scenario)
    assert by_number(outbox) == dict.fromkeys(range(8), ("done", 1)) | {
        3: ("dead", 1),
        5: ("retrying", 1),
        6: ("retrying", 0),
    }
    assert effects(outbox) == [0, 1, 2, 4, 7]


def by_number(outbox: Any) -> dict[int, tuple[str, int]]:
    return {
        n: (state, attempts)
        for n, state, attempts in outbox.sql.execute(
            "SELECT (e.payload->>'n')::integer, d.state, d.attempts FROM outbox.delivery AS d"
            " JOIN outbox.event AS e ON e.id = d.event_id"
        ).fetchall()
    }


@EVERY
@pytest.mark.parametrize("shape", ["list", "dict", "dict of failures"])
def test_a_handler_may_return_an_outcome_for_each_event_and_nothing_runs_twice(
    outbox: Any, work: Any, until: Any, kind: str, shape: str
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

    declare(app, kind, body, batch=8, backoff=workers.Backoff(initial=3600))
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(8)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: len(outbox.states()) == 8 and outbox.pending("e", "h") == 0)

    work(app, scenario)
    assert runs == [list(range(8))]
    assert by_number(outbox) == dict.fromkeys(range(8), ("done", 1)) | {
        3: ("dead", 1),
        5: ("retrying", 1),
        6: ("retrying", 0),
        7: ("retrying", 1),
    }
    letter = outbox.one("SELECT error, payload FROM outbox.dead_letter")
    assert letter == ("rejected: no such order", {"n": 3})
    # What a transactional batch wrote commits with all of its outcomes.
    assert effects(outbox) == (list(range(8)) if "transactional" in kind else [])


@TRANSACTIONAL
def test_outcomes_of_retries_are_recorded_in_the_transaction_too(outbox: Any, work: Any, until: Any, kind: str) -> None:
    app, runs = workers.App(), []

    def body(events: list[Event]) -> Any:
        runs.append(sorted(numbers(events)))
        if len(runs) == 1:
            return [ValueError(str(n)) for n in numbers(events)]
        return {e.id: workers.Reject("3") if e.payload["n"] == 3 else ValueError() for e in events if e.payload["n"]}

    declare(app, kind, body, batch=4, batch_wait=0.5, max_attempts=2, backoff=FAST)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(4)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1 and outbox.count("dead") == 3)

    work(app, scenario)
    assert runs == [[0, 1, 2, 3]] * 2
    assert by_number(outbox) == {0: ("done", 2), 1: ("dead", 2), 2: ("dead", 2), 3: ("dead", 2)}
    assert effects(outbox) == sorted([0, 1, 2, 3] * 2)


@pytest.mark.parametrize("returned", [[None], ["ok"] * 4, {"no such id": None}, 7, "done"])
def test_an_answer_that_is_none_fails_every_event_with_advice_and_divides_nothing(
    outbox: Any, work: Any, until: Any, returned: Any
) -> None:
    app, runs = workers.App(), []

    def body(events: list[Event]) -> Any:
        runs.append(len(events))
        return returned

    declare(app, "async transactional", body, batch=4, max_attempts=1)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(4)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 4)

    work(app, scenario)
    assert runs == [4]
    assert effects(outbox) == []
    errors = {row[0] for row in outbox.sql.execute("SELECT error FROM outbox.dead_letter").fetchall()}
    assert all("a list in their order or a dict by event.id" in error for error in errors)


@TRANSACTIONAL
def test_effects_and_all_rows_of_a_batch_are_one_transaction(outbox: Any, work: Any, until: Any, kind: str) -> None:
    app = workers.App()
    declare(app, kind, lambda events: None, batch=40)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(40)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 40)

    work(app, scenario)
    rows = "SELECT DISTINCT xmin::text FROM outbox.delivery UNION SELECT DISTINCT xmin::text FROM effects"
    assert outbox.one(f"SELECT count(*) FROM ({rows}) AS written") == 1


@TRANSACTIONAL
def test_events_that_another_worker_recorded_leave_the_batch_and_the_rest_commits_once(
    outbox: Any, work: Any, until: Any, kind: str
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

    declare(app, kind, body, batch=10)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(10)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 10 and outbox.pending("e", "h") == 0)
        await until(lambda: not worker._lanes["h"].active)

    work(app, scenario)
    rest = [n for n in range(10) if n % 3]
    assert runs == [list(range(10)), rest]
    assert effects(outbox) == rest
    assert outbox.one("SELECT max(attempts) FROM outbox.delivery") == 1


def test_two_workers_with_the_same_events_in_other_batches_apply_each_once(
    outbox: Any, settings: Settings, until: Any
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
    assert effects(outbox) == list(range(30))
    assert len(runs[0]) == len(runs[1]) == 20


def test_an_event_whose_lease_is_lost_in_a_running_batch_is_not_committed_with_it(
    outbox: Any, work: Any, until: Any
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
    assert effects(outbox) == [0, 2, 3]


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


def test_a_retry_whose_lease_was_taken_leaves_the_batch(outbox: Any, work: Any, until: Any) -> None:
    app, runs = workers.App(), []

    def body(events: list[Event]) -> None:
        runs.append(sorted(numbers(events)))
        if len(runs) == 1:
            with psycopg.connect(outbox.settings.libpq_url(), autocommit=True) as other:
                other.execute(
                    "UPDATE outbox.delivery SET lease = gen_random_uuid(), due_at = now() + interval '1 hour'"
                    " WHERE event_id = (SELECT id FROM outbox.event WHERE payload->>'n' = '1')"
                )

    declare(app, "async transactional", body, batch=3, batch_wait=0.5)
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
    assert effects(outbox) == [0, 2]
    assert by_number(outbox) == {0: ("done", 2), 1: ("retrying", 1), 2: ("done", 2)}


@EVERY
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


@EVERY
def test_the_timeout_is_that_of_a_run_and_the_event_that_hangs_is_found(
    outbox: Any, work: Any, until: Any, kind: str
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
        declare(app, kind, spin, **options)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(4)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 3 and outbox.count("dead") == 1)

    work(app, scenario)
    assert timed_out == [4, 2, 1]
    assert by_number(outbox)[2] == ("dead", 1)
    assert "timed out after 0.4 s" in outbox.one("SELECT error FROM outbox.dead_letter")
    assert effects(outbox) == ([0, 1, 3] if "transactional" in kind else [])


@TRANSACTIONAL
def test_conflicts_and_lost_connections_are_repeated_in_place_and_divide_nothing(
    outbox: Any, work: Any, until: Any, kind: str
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

    declare(app, kind, body, batch=10)
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(10)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 10)

    work(app, scenario)
    assert runs == [10, 10, 10]
    assert effects(outbox) == list(range(10))
    assert outbox.one("SELECT max(attempts) FROM outbox.delivery") == 1


def test_a_lost_reply_to_the_commit_of_a_batch_is_looked_up_first(
    outbox: Any, work: Any, until: Any, monkeypatch: pytest.MonkeyPatch
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
    assert effects(outbox) == [0, 1, 2, 3, 4]
    assert outbox.count("done") == 4


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
