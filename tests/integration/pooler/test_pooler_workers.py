"""Workers and writers whose sessions a transaction pooler hands round."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
import structlog
from sqlalchemy import Engine, event, text
from sqlalchemy import create_engine as create_sync_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from waiting import until

import outbox
import workers
from outbox.settings import Settings
from relay import Relay
from workers.database import Database
from workers.errors import RowRefusedError

INSERT = text("INSERT INTO effect VALUES (:handler, :n)")
FAST = workers.Backoff(initial=0.01, jitter=0)
LEFT = """
SELECT pg_backend_pid(), current_setting('idle_in_transaction_session_timeout'), current_setting('plan_cache_mode'),
       (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_listening_channels()),
       (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())
"""
"""What clients may have left on a session."""


@pytest.fixture
def sql(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A direct connection, and a table for effects without a unique key, so that a second application shows."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE effect (handler text, n integer)")
        yield connection


@pytest.fixture
def relay(pooled: Settings) -> Iterator[None]:
    """A relay on its direct connection."""
    running = Relay(pooled)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    yield
    running.stop()
    thread.join(60)
    assert not thread.is_alive()


def one(sql: psycopg.Connection[Any], statement: str) -> Any:
    row = sql.execute(statement.encode()).fetchone()
    assert row is not None
    return row[0]


def effects(sql: psycopg.Connection[Any]) -> Counter[tuple[str, int]]:
    return Counter(sql.execute("SELECT handler, n FROM effect").fetchall())


def left(url: str) -> set[tuple[Any, ...]]:
    """What is left on the pooler's sessions, each held in a transaction until all are asked."""
    with ExitStack() as stack:
        clients = [stack.enter_context(psycopg.connect(url)) for _ in range(3)]
        rows = [row for client in clients if (row := client.execute(LEFT).fetchone())]
    assert len({row[0] for row in rows}) == 3
    return {tuple(row[1:]) for row in rows}


NOTHING = {("0", "auto", 0, 0, 0)}


def add(url: str, name: str, count: int) -> None:
    """Add events through the pooler, each in a transaction, as a web process would."""
    engine = create_sync_engine(
        url.replace("postgresql://", "postgresql+psycopg://"), connect_args={"prepare_threshold": None}
    )
    for n in range(count):
        with Session(engine) as session:
            outbox.add(session, name, n=n)
            session.commit()
    engine.dispose()


async def add_async(url: str, name: str, count: int) -> None:
    """The same for asyncio."""
    engine = create_async_engine(
        url.replace("postgresql://", "postgresql+psycopg://"), connect_args={"prepare_threshold": None}
    )
    for n in range(count):
        async with AsyncSession(engine) as session:
            outbox.add(session, name, n=n)
            await session.commit()
    await engine.dispose()


def work(app: workers.App, settings: Settings, scenario: Callable[[], Awaitable[None]], count: int = 1) -> None:
    """Run a scenario beside workers in this process."""

    async def main() -> None:
        several = [workers.Worker(app, settings) for _ in range(count)]
        for worker in several:
            await worker.start()
        await scenario()
        for worker in several:
            await worker.stop()

    asyncio.run(main())


def test_a_session_comes_to_the_next_client_as_it_was_left(pooled: Settings) -> None:
    """Else these tests would prove nothing."""
    with psycopg.connect(pooled.libpq_url(), autocommit=True) as connection:
        assert connection.execute("SELECT pg_backend_pid()").fetchone() != (connection.info.backend_pid,)
        with pytest.raises(psycopg.errors.InvalidSqlStatementName):  # noqa: PT012
            for _ in range(2):
                connection.execute("SELECT %s", [1], prepare=True)
    with psycopg.connect(pooled.libpq_url(), autocommit=True) as connection:
        connection.execute("SET plan_cache_mode = force_generic_plan")
    found = left(pooled.libpq_url())
    assert {row[1] for row in found} == {"auto", "force_generic_plan"}
    assert {row[2] for row in found} == {0, 1}


@pytest.mark.usefixtures("relay")
def test_every_kind_of_handler_does_each_event_once_and_leaves_nothing_on_the_sessions(
    sql: psycopg.Connection[Any], pooled: Settings
) -> None:
    app, seen = workers.App(), Counter[tuple[str, int]]()

    @app.handler("ordered", concurrency=8)
    async def asynchronous(n: int, session: AsyncSession) -> None:
        await session.execute(INSERT, {"handler": "asynchronous", "n": n})
        async with session.begin_nested():
            outbox.add(session, "billed", n=n)

    @app.handler("ordered", concurrency=8)
    def threaded(n: int, session: Session) -> None:
        session.execute(INSERT, {"handler": "threaded", "n": n})
        outbox.add(session, "shipped", n=n)

    @app.handler("billed")
    async def plain(n: int) -> None:
        seen["plain", n] += 1

    @app.handler("shipped")
    def plain_threaded(n: int) -> None:
        seen["plain_threaded", n] += 1

    @app.handler("paid", backoff=FAST)
    async def later(n: int, session: AsyncSession, context: workers.Context) -> None:
        await session.execute(INSERT, {"handler": "later", "n": n})
        if context.attempt < 3:
            raise LookupError("not yet")

    @app.handler("paid")
    def never(n: int, session: Session) -> None:
        session.execute(INSERT, {"handler": "never", "n": n})
        raise workers.Reject("never")

    @app.handler("paid", max_attempts=2, backoff=FAST)
    async def plainly_never(n: int) -> None:
        raise LookupError("never")

    async def scenario() -> None:
        url = pooled.libpq_url()
        await asyncio.gather(asyncio.to_thread(add, url, "ordered", 30), add_async(url, "paid", 30))
        await until(lambda: one(sql, "SELECT count(*) FROM outbox.delivery WHERE state <> 'retrying'") == 210)

    work(app, pooled, scenario, count=2)
    assert effects(sql) == Counter(
        [(handler, n) for handler in ("asynchronous", "threaded") for n in range(30)]
        + [("later", n) for n in range(30)]
    )
    assert seen == Counter((handler, n) for handler in ("plain", "plain_threaded") for n in range(30))
    assert one(sql, "SELECT count(*) FROM outbox.delivery WHERE state = 'done'") == 150
    dead = sql.execute("SELECT handler, count(*) FROM outbox.dead_letter GROUP BY handler ORDER BY handler").fetchall()
    assert dead == [("never", 30), ("plainly_never", 30)]
    assert left(pooled.libpq_url()) == NOTHING


@pytest.mark.usefixtures("relay")
def test_each_transaction_has_its_idle_limit_and_may_still_choose_its_isolation(
    sql: psycopg.Connection[Any], pooled: Settings
) -> None:
    app, found = workers.App(), list[str]()
    choose = text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
    limit = text("SELECT current_setting('idle_in_transaction_session_timeout')")

    @app.handler("ordered", timeout=7)
    async def asynchronous(session: AsyncSession) -> None:
        await session.execute(choose)
        found.append(await session.scalar(limit) or "")

    @app.handler("ordered", timeout=8)
    def threaded(session: Session) -> None:
        session.execute(choose)
        found.append(session.scalar(limit) or "")

    async def scenario() -> None:
        await add_async(pooled.libpq_url(), "ordered", 10)
        await until(lambda: one(sql, "SELECT count(*) FROM outbox.delivery WHERE state = 'done'") == 20)

    work(app, pooled, scenario)
    assert Counter(found) == {"17s": 10, "18s": 10}
    assert left(pooled.libpq_url()) == NOTHING


@pytest.mark.usefixtures("relay")
def test_a_run_that_is_cut_off_at_its_timeout_leaves_its_session_usable(
    sql: psycopg.Connection[Any], pooled: Settings
) -> None:
    app = workers.App()

    @app.handler("ordered", timeout=0.5, max_attempts=2, backoff=FAST)
    async def hangs(n: int, session: AsyncSession, context: workers.Context) -> None:
        await session.execute(INSERT, {"handler": "hangs", "n": n})
        if context.attempt == 1:
            await session.execute(text("SELECT pg_sleep(60)"))

    async def scenario() -> None:
        await add_async(pooled.libpq_url(), "ordered", 6)
        await until(lambda: one(sql, "SELECT count(*) FROM outbox.delivery WHERE state = 'done'") == 6)

    work(app, pooled, scenario)
    assert effects(sql) == Counter(("hangs", n) for n in range(6))
    assert left(pooled.libpq_url()) == NOTHING


@pytest.mark.usefixtures("relay")
def test_sessions_that_end_under_the_pooler_lose_and_double_nothing(
    sql: psycopg.Connection[Any], pooled: Settings
) -> None:
    app = workers.App()

    @app.handler("ordered")
    async def asynchronous(n: int, session: AsyncSession) -> None:
        await session.execute(INSERT, {"handler": "asynchronous", "n": n})

    @app.handler("ordered")
    def threaded(n: int, session: Session) -> None:
        session.execute(INSERT, {"handler": "threaded", "n": n})

    async def scenario() -> None:
        for first in range(0, 120, 40):
            sql.execute(
                "INSERT INTO outbox.event (name, payload)"
                " SELECT 'ordered', json_build_object('n', n) FROM generate_series(%s::int, %s) AS n",
                [first, first + 39],
            )
            await until(lambda first=first: one(sql, "SELECT count(*) FROM effect") > 2 * first + 20)
            sql.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid() AND application_name !~ '^outbox (relay|sweep|upkeep) '"
            )
            await until(
                lambda first=first: (
                    one(sql, "SELECT count(*) FROM outbox.delivery WHERE state = 'done'") == 2 * first + 80
                )
            )

    work(app, pooled, scenario)
    assert effects(sql) == Counter((handler, n) for handler in ("asynchronous", "threaded") for n in range(120))
    assert left(pooled.libpq_url()) == NOTHING


@pytest.mark.parametrize("behind", [True, False], ids=["pooler", "direct"])
@pytest.mark.usefixtures("relay")
def test_only_behind_a_pooler_a_transaction_begins_with_a_statement_of_ours(
    sql: psycopg.Connection[Any], pooled: Settings, settings: Settings, behind: bool
) -> None:
    app, prepared, said = workers.App(), list[int](), list[str]()

    @app.handler("ordered", concurrency=1)
    async def asynchronous(n: int, session: AsyncSession) -> None:
        await session.execute(INSERT, {"handler": "asynchronous", "n": n})
        prepared.append(await session.scalar(text("SELECT count(*) FROM pg_prepared_statements")) or 0)

    @event.listens_for(Engine, "before_cursor_execute")
    def hear(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        said.append(statement)

    async def scenario() -> None:
        await add_async(settings.libpq_url(), "ordered", 10)
        await until(lambda: one(sql, "SELECT count(*) FROM outbox.delivery WHERE state = 'done'") == 10)

    try:
        work(app, pooled if behind else settings, scenario)
    finally:
        event.remove(Engine, "before_cursor_execute", hear)
    assert len([statement for statement in said if "idle_in_transaction" in statement]) == (10 if behind else 0)
    assert bool(prepared[-1]) == (not behind)


def test_a_row_that_is_held_is_waited_for_briefly_and_the_limit_stays_on_no_session(
    pooled: Settings, settings: Settings, sql: psycopg.Connection[Any]
) -> None:
    async def main() -> None:
        database = Database(pooled.libpq_url(), "outbox", asyncio.Event(), structlog.get_logger(), lock_timeout=0.05)
        with psycopg.connect(settings.libpq_url()) as holder:
            holder.execute("INSERT INTO outbox.handler (name, event_name) VALUES ('h', 'e')")
            handler = {"names": ["h"], "event_names": ["e"], "starts": [None]}
            with pytest.raises(RowRefusedError) as refused:
                await database.write("register", handler)
            assert refused.value.held
        assert await database.write("register", handler) == [("h", "e")]
        assert await database.query("SHOW lock_timeout", {}) == [("50ms",)]
        await database.close()

    asyncio.run(main())
    with psycopg.connect(pooled.libpq_url()) as other:
        assert other.execute("SHOW lock_timeout").fetchone() == ("0",)
