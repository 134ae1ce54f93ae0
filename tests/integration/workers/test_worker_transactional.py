"""Transactional handlers: effects, follow-up rows and the outcome stand or fall together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy.event
import sqlalchemy.exc
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import workers
from outbox.settings import Settings


@pytest.fixture(autouse=True)
def _effects(outbox: Any) -> None:
    # Without a unique key, so that a second application shows.
    outbox.sql.execute("CREATE TABLE effects (n integer)")


def effects(outbox: Any) -> list[int]:
    return [row[0] for row in outbox.sql.execute("SELECT n FROM effects ORDER BY n").fetchall()]


INSERT = text("INSERT INTO effects VALUES (:n)")
FAST = workers.Backoff(initial=0.01, jitter=0)


def both(app: workers.App, **options: Any) -> Callable[[Callable[[Any, int], Any]], None]:
    """Declare the same handler twice: `h` async, `g` sync. The body is a generator that yields statements."""

    def declare(body: Callable[[Any, int], Any]) -> None:
        @app.handler("e", **options)
        async def h(n: int, session: AsyncSession, context: workers.Context) -> None:
            for statement in body(context, n):
                await session.execute(*statement)

        @app.handler("f", **options)
        def g(n: int, session: Session, context: workers.Context) -> None:
            for statement in body(context, n):
                session.execute(*statement)

    return declare


EITHER = pytest.mark.parametrize(("event", "handler"), [("e", "h"), ("f", "g")])


@EITHER
def test_effect_and_outcome_commit_together(outbox: Any, work: Any, until: Any, event: str, handler: str) -> None:
    app = workers.App()

    @both(app)
    def _(context: workers.Context, n: int) -> Any:
        yield INSERT, {"n": n}

    outbox.attach(handler, event)
    outbox.publish(event, *({"n": n} for n in range(100)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 100 and outbox.pending(event, handler) == 0)

    work(app, scenario)
    assert effects(outbox) == list(range(100))


@EITHER
def test_a_failed_attempt_leaves_no_effect(outbox: Any, work: Any, until: Any, event: str, handler: str) -> None:
    app = workers.App()

    @both(app, backoff=FAST)
    def _(context: workers.Context, n: int) -> Any:
        yield INSERT, {"n": n}
        if context.attempt < 3:
            raise RuntimeError("not yet")

    outbox.attach(handler, event)
    outbox.publish(event, {"n": 1}, {"n": 2})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 2)

    work(app, scenario)
    assert effects(outbox) == [1, 2]
    assert outbox.one("SELECT min(attempts), max(attempts) FROM outbox.delivery") == (3, 3)


def test_two_workers_with_the_same_event_at_once_apply_it_once(outbox: Any, settings: Settings, until: Any) -> None:
    app, both_in, runs = workers.App(), asyncio.Event(), []

    @app.handler("e", concurrency=1)
    async def h(n: int, session: AsyncSession) -> None:
        runs.append(n)
        await session.execute(INSERT, {"n": n})
        if len(runs) == 2:
            both_in.set()
        await both_in.wait()

    outbox.attach("h", "e")
    events = outbox.write("e", {"n": 1})

    async def main() -> None:
        async with workers.Worker(app, settings), workers.Worker(app, settings):
            outbox.push("e", events)
            await until(lambda: len(runs) == 1)
            # The first worker is full, so the second entry of the same event goes to the other one.
            outbox.push("e", events)
            await until(lambda: outbox.count("done") == 1 and outbox.pending("e", "h") == 0)

    asyncio.run(main())
    assert runs == [1, 1]
    assert effects(outbox) == [1]


def test_a_row_that_somebody_else_wrote_rolls_the_run_back(outbox: Any, work: Any, until: Any) -> None:
    app, inside, go = workers.App(), asyncio.Event(), asyncio.Event()

    @app.handler("e")
    async def h(n: int, session: AsyncSession) -> None:
        await session.execute(INSERT, {"n": n})
        inside.set()
        await go.wait()

    outbox.attach("h", "e")
    outbox.publish("e", {"n": 1})

    async def scenario(worker: workers.Worker) -> None:
        await inside.wait()
        outbox.sql.execute(
            "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
            " SELECT id, 'h', created_at, 'done', 1 FROM outbox.event"
        )
        go.set()
        await until(lambda: outbox.pending("e", "h") == 0)

    work(app, scenario)
    assert effects(outbox) == []


def test_a_retry_whose_lease_was_taken_changes_nothing(outbox: Any, work: Any, until: Any) -> None:
    app, inside, go = workers.App(), asyncio.Event(), asyncio.Event()

    @app.handler("e")
    async def h(n: int, session: AsyncSession) -> None:
        await session.execute(INSERT, {"n": n})
        inside.set()
        await go.wait()

    outbox.attach("h", "e")
    outbox.write("e", {"n": 1})
    outbox.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " SELECT id, 'h', created_at, 'retrying', 1, now() FROM outbox.event"
    )

    async def scenario(worker: workers.Worker) -> None:
        await inside.wait()
        outbox.sql.execute("UPDATE outbox.delivery SET lease = gen_random_uuid(), due_at = now() + interval '1 hour'")
        go.set()
        await until(lambda: not worker._lanes["h"].active)

    work(app, scenario)
    assert effects(outbox) == []
    assert outbox.one("SELECT state, attempts FROM outbox.delivery") == ("retrying", 1)


@EITHER
def test_a_superseded_run_leaves_nothing_on_its_connection_for_the_next_one(
    outbox: Any, work: Any, until: Any, event: str, handler: str
) -> None:
    app = workers.App()

    @both(app, concurrency=1)
    def _(context: workers.Context, n: int) -> Any:
        yield INSERT, {"n": n}
        if n == 1:
            outbox.sql.execute("UPDATE outbox.delivery SET lease = gen_random_uuid(), due_at = now() + interval '1 h'")

    outbox.attach(handler, event)
    outbox.write(event, {"n": 1})
    outbox.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " SELECT id, %s, created_at, 'retrying', 1, now() FROM outbox.event",
        [handler],
    )

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.one("SELECT due_at > now() + interval '30 min' FROM outbox.delivery"))
        outbox.publish(event, {"n": 2}, {"n": 3})
        await until(lambda: outbox.count("done") == 2)

    work(app, scenario)
    assert effects(outbox) == [2, 3]


@EITHER
def test_a_superseded_run_that_said_nothing_gives_nobody_a_connection_that_commits_each_statement(
    outbox: Any, work: Any, until: Any, event: str, handler: str
) -> None:
    app, runs = workers.App(), []

    @both(app, concurrency=1)
    def _(context: workers.Context, n: int) -> Any:
        runs.append(n)
        if n == 1:
            outbox.sql.execute(
                "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
                " SELECT id, %s, created_at, 'done', 1 FROM outbox.event",
                [handler],
            )
            return
        yield INSERT, {"n": n}
        raise workers.Reject("no")

    outbox.attach(handler, event)
    outbox.publish(event, {"n": 1})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1 and outbox.pending(event, handler) == 0)
        outbox.publish(event, {"n": 2})
        await until(lambda: outbox.count("dead") == 1)

    work(app, scenario)
    assert runs == [1, 2]
    assert effects(outbox) == []


@EITHER
def test_what_commit_itself_finds_wrong_is_of_the_class_that_handlers_know(
    outbox: Any, work: Any, until: Any, event: str, handler: str
) -> None:
    app = workers.App()
    outbox.sql.execute("CREATE TABLE once (n integer UNIQUE DEFERRABLE INITIALLY DEFERRED)")

    @both(app, dead_on=sqlalchemy.exc.IntegrityError)
    def _(context: workers.Context, n: int) -> Any:
        yield INSERT, {"n": n}
        yield text("INSERT INTO once VALUES (:n), (:n)"), {"n": n}

    outbox.attach(handler, event)
    outbox.publish(event, {"n": 1})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 1)

    work(app, scenario)
    assert outbox.one("SELECT attempts FROM outbox.delivery") == 1
    assert effects(outbox) == []


async def _leave(session: AsyncSession) -> None:
    async with session:
        await session.execute(INSERT, {"n": 2})


def _leave_now(session: Session) -> None:
    with session:
        session.execute(INSERT, {"n": 2})


async def _end(session: AsyncSession, how: str) -> None:
    await getattr(session.get_transaction(), how)()


async def _end_connection(session: AsyncSession, how: str) -> None:
    await getattr(await session.connection(), how)()


WAYS_TO_END: dict[str, tuple[Callable[[AsyncSession], Any], Callable[[Session], Any]]] = {
    "session.commit()": (lambda session: session.commit(), lambda session: session.commit()),
    "session.rollback()": (lambda session: session.rollback(), lambda session: session.rollback()),
    "session.begin()": (lambda session: session.begin(), lambda session: session.begin()),
    "session.close()": (lambda session: session.close(), lambda session: session.close()),
    "session.reset()": (lambda session: session.reset(), lambda session: session.reset()),
    "session.invalidate()": (lambda session: session.invalidate(), lambda session: session.invalidate()),
    "with session": (_leave, _leave_now),
    "session.get_transaction().rollback()": (
        lambda session: _end(session, "rollback"),
        lambda session: session.get_transaction().rollback(),
    ),
    "connection.commit()": (
        lambda session: _end_connection(session, "commit"),
        lambda session: session.connection().commit(),
    ),
    "AUTOCOMMIT": (
        lambda session: session.execute(text("ROLLBACK")),
        lambda session: session.execute(text("ROLLBACK")),
    ),
}


@pytest.mark.parametrize("way", WAYS_TO_END)
def test_ending_the_workers_transaction_is_refused_with_advice(outbox: Any, work: Any, until: Any, way: str) -> None:
    app, (end, end_now) = workers.App(), WAYS_TO_END[way]

    @app.handler("e", max_attempts=1)
    async def h(session: AsyncSession) -> None:
        await session.execute(INSERT, {"n": 1})
        await end(session)

    @app.handler("f", max_attempts=1)
    def g(session: Session) -> None:
        session.execute(INSERT, {"n": 1})
        end_now(session)

    outbox.attach("h", "e")
    outbox.attach("g", "f")
    outbox.publish("e", {})
    outbox.publish("f", {})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 2)

    work(app, scenario)
    errors = [row[0] for row in outbox.sql.execute("SELECT error FROM outbox.dead_letter").fetchall()]
    assert all("begin_nested" in error and way in error for error in errors), errors
    assert effects(outbox) == []


def test_a_commit_that_failed_early_leaves_no_outcome_for_the_next_run_to_record(
    outbox: Any, work: Any, until: Any
) -> None:
    app = workers.App()

    def fail(session: Session) -> None:
        raise LookupError("before the commit")

    @app.handler("e", max_attempts=1, concurrency=1)
    async def h(n: int, session: AsyncSession) -> None:
        await session.execute(INSERT, {"n": n})
        if n == 1:
            sqlalchemy.event.listen(session.sync_session, "before_commit", fail)
        else:
            await _end_connection(session, "commit")

    outbox.attach("h", "e")
    outbox.publish("e", {"n": 1}, {"n": 2})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 2)

    work(app, scenario)
    assert effects(outbox) == []


@EITHER
def test_a_connection_of_the_session_that_is_rolled_back_is_not_taken_for_success(
    outbox: Any, work: Any, until: Any, event: str, handler: str
) -> None:
    app = workers.App()

    @app.handler("e", max_attempts=1)
    async def h(session: AsyncSession) -> None:
        await session.execute(INSERT, {"n": 1})
        await _end_connection(session, "rollback")

    @app.handler("f", max_attempts=1)
    def g(session: Session) -> None:
        session.execute(INSERT, {"n": 1})
        session.connection().rollback()

    outbox.attach(handler, event)
    outbox.publish(event, {})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 1)

    work(app, scenario)
    assert effects(outbox) == []


@EITHER
def test_a_transaction_that_a_statement_committed_is_said_to_be_so(
    outbox: Any, work: Any, until: Any, event: str, handler: str
) -> None:
    app = workers.App()

    @both(app, max_attempts=1)
    def _(context: workers.Context, n: int) -> Any:
        yield INSERT, {"n": n}
        yield (text("COMMIT"),)

    outbox.attach(handler, event)
    outbox.publish(event, {"n": 1})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 1)

    work(app, scenario)
    assert "begin_nested" in outbox.one("SELECT error FROM outbox.dead_letter")


def test_savepoints_are_the_handlers_own(outbox: Any, work: Any, until: Any) -> None:
    app = workers.App()

    @app.handler("e")
    async def h(session: AsyncSession) -> None:
        await session.execute(INSERT, {"n": 1})
        try:
            async with session.begin_nested():
                await session.execute(INSERT, {"n": 2})
                raise LookupError
        except LookupError:
            pass
        async with session.begin_nested():
            await session.execute(INSERT, {"n": 3})

    outbox.attach("h", "e")
    outbox.publish("e", {})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    assert effects(outbox) == [1, 3]


@pytest.mark.parametrize(
    "failure",
    [
        "DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$",
        "SELECT pg_terminate_backend(pg_backend_pid())",
    ],
    ids=["conflict", "connection"],
)
@EITHER
def test_conflicts_and_lost_connections_are_repeated_in_place_and_cost_no_attempt(
    outbox: Any, work: Any, until: Any, event: str, handler: str, failure: str
) -> None:
    app, runs = workers.App(), []

    @both(app)
    def _(context: workers.Context, n: int) -> Any:
        runs.append(context.attempt)
        yield INSERT, {"n": n}
        if len(runs) < 3:
            yield (text(failure),)

    outbox.attach(handler, event)
    outbox.publish(event, {"n": 1})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    assert runs == [1, 1, 1]
    assert effects(outbox) == [1]


def test_a_lost_reply_to_commit_is_looked_up_before_anything_else(
    outbox: Any, work: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, runs = workers.App(), []

    @app.handler("e")
    async def h(n: int, session: AsyncSession) -> None:
        runs.append(n)
        await session.execute(INSERT, {"n": n})

    from workers.transaction import HandlerSession

    commit = HandlerSession.commit

    def commit_and_lose_the_reply(session: HandlerSession) -> None:
        commit(session)
        if len(runs) == 1:
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(HandlerSession, "commit", commit_and_lose_the_reply)
    outbox.attach("h", "e")
    outbox.publish("e", {"n": 1})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.pending("e", "h") == 0 and outbox.count("done") == 1)

    work(app, scenario)
    assert runs == [1]
    assert effects(outbox) == [1]


def test_the_idle_limit_of_the_connection_follows_the_timeout(outbox: Any, work: Any, until: Any) -> None:
    app, found = workers.App(), []

    @app.handler("e", timeout=7)
    async def h(session: AsyncSession) -> None:
        found.append(await session.scalar(text("SHOW idle_in_transaction_session_timeout")))

    outbox.attach("h", "e")
    outbox.publish("e", {})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    assert found == ["17s"]


@EITHER
def test_a_timeout_rolls_back(outbox: Any, work: Any, until: Any, event: str, handler: str) -> None:
    app, runs = workers.App(), []

    @both(app, timeout=0.2, backoff=FAST)
    def _(context: workers.Context, n: int) -> Any:
        runs.append(n)
        yield INSERT, {"n": n}
        if context.attempt == 1:
            if event == "f":
                deadline = time.monotonic() + 5
                while time.monotonic() < deadline:
                    pass
            else:
                yield (text("SELECT pg_sleep(5)"),)

    outbox.attach(handler, event)
    outbox.publish(event, {"n": 1})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    assert runs == [1, 1]
    assert effects(outbox) == [1]
