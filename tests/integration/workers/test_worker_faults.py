"""Servers that go away or forget, hostile entries and handlers: everything drains afterwards, effects once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import uvloop
from sqlalchemy import event as hooks
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import workers
from outbox.names import catch_up_key, stream_key
from outbox.settings import Settings
from workers import link

INSERT = text("INSERT INTO effects VALUES (:n)")
FAST = workers.Backoff(initial=0.01, jitter=0)
KEY = stream_key("outbox", "e")


@pytest.fixture(autouse=True)
def _effects(outbox: Any) -> None:
    # Without a unique key, so that a second application shows.
    outbox.sql.execute("CREATE TABLE effects (n integer)")
    outbox.sql.execute("CREATE TABLE once (n integer PRIMARY KEY)")


def effects(outbox: Any) -> list[int]:
    return [row[0] for row in outbox.sql.execute("SELECT n FROM effects ORDER BY n").fetchall()]


def inserting() -> workers.App:
    """An app whose handler writes one effect."""
    app = workers.App()

    @app.handler("e", backoff=FAST)
    async def h(n: int, session: AsyncSession) -> None:
        await session.execute(INSERT, {"n": n})
        await asyncio.sleep(0.002)

    return app


class Outage:
    """This test's database as if its server were away: nobody is let in."""

    def __init__(self, postgres_url: str, settings: Settings) -> None:
        self.admin = psycopg.connect(postgres_url, autocommit=True)
        self.database = urlsplit(settings.libpq_url()).path[1:]

    def terminate(self, but: psycopg.Connection[Any] | None = None) -> None:
        """End every connection but one."""
        self.admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> %s",
            [self.database, but.info.backend_pid if but else 0],
        )

    def begin(self, but: psycopg.Connection[Any]) -> None:
        self.admin.execute(f"ALTER DATABASE {self.database} WITH ALLOW_CONNECTIONS false")
        self.terminate(but)

    def end(self) -> None:
        self.admin.execute(f"ALTER DATABASE {self.database} WITH ALLOW_CONNECTIONS true")


@pytest.fixture
def outage(postgres_url: str, settings: Settings) -> Iterator[Outage]:
    made = Outage(postgres_url, settings)
    yield made
    made.end()
    made.admin.close()


def test_connections_that_are_terminated_again_and_again_cost_neither_effects_nor_attempts(
    outbox: Any, work: Any, until: Any, outage: Outage
) -> None:
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(200)))

    async def scenario(worker: workers.Worker) -> None:
        for share in (20, 60, 100, 140):
            await until(lambda share=share: outbox.count("done") >= share)
            outage.terminate(outbox.sql)
        await until(lambda: outbox.count("done") == 200 and outbox.pending("e", "h") == 0)

    work(inserting(), scenario)
    assert effects(outbox) == list(range(200))
    assert outbox.one("SELECT max(attempts) FROM outbox.delivery") == 1


def read(outbox: Any, event: str, handler: str) -> int:
    """How many entries the group was given."""
    # Redis 6.2 does not count them.
    key = stream_key("outbox", event)
    (group,) = [g for g in outbox.redis.xinfo_groups(key) if g["name"] == handler.encode()]
    return len(outbox.redis.xrange(key, max=group["last-delivered-id"]))


def test_while_postgres_is_away_nothing_is_acknowledged_and_afterwards_all_drains(
    outbox: Any, work: Any, until: Any, outage: Outage
) -> None:
    app = inserting()
    plain: list[int] = []

    @app.handler("f", backoff=FAST)
    async def g(n: int) -> None:
        plain.append(n)
        await asyncio.sleep(0.002)

    outbox.attach("h", "e")
    outbox.attach("g", "f")

    async def scenario(worker: workers.Worker) -> None:
        outbox.publish("e", *({"n": n} for n in range(100)))
        outbox.publish("f", *({"n": n} for n in range(300)))
        await until(lambda: outbox.count("done") >= 30)
        outage.begin(but=outbox.sql)
        await until(lambda: not worker._up.is_set())
        # As many as have an outcome are acknowledged at the most; the rest is unread or pending.
        acknowledged = read(outbox, "e", "h") + read(outbox, "f", "g")
        acknowledged -= outbox.pending("e", "h") + outbox.pending("f", "g")
        assert acknowledged <= outbox.count("done") < 400
        outage.end()
        await until(lambda: outbox.count("done") == 400)
        await until(lambda: outbox.pending("e", "h") + outbox.pending("f", "g") == 0)

    work(app, scenario)
    assert effects(outbox) == list(range(100))
    assert set(plain) == set(range(300))
    assert outbox.one("SELECT max(attempts) FROM outbox.delivery") == 1


@pytest.mark.oldest
@pytest.mark.parametrize("fault", ["restarted empty", "FLUSHALL", "DEL", "XGROUP DESTROY", "XGROUP DELCONSUMER"])
def test_whatever_redis_forgets_the_worker_goes_on_and_effects_are_once(
    fault: str, outbox: Any, work: Any, until: Any, redis_server: Any
) -> None:
    outbox.attach("h", "e")
    before = outbox.write("e", *({"n": n} for n in range(120)))
    outbox.push("e", before)

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") >= 20)
        if fault == "restarted empty":
            redis_server.kill()
            await asyncio.to_thread(redis_server.start)
        elif fault == "FLUSHALL":
            outbox.redis.flushall()
        elif fault == "DEL":
            outbox.redis.delete(KEY)
        elif fault == "XGROUP DESTROY":
            outbox.redis.xgroup_destroy(KEY, "h")
        else:
            outbox.redis.xgroup_delconsumer(KEY, "h", worker.name)
        # What the relay's feed or sweep would bring again.
        outbox.tick += 10
        outbox.push("e", before, key=catch_up_key("outbox", "e", "h"))
        outbox.publish("e", *({"n": n} for n in range(120, 150)))
        await until(lambda: outbox.count("done") == 150)
        await until(lambda: outbox.pending("e", "h") == 0)

    # An entry that is read anew just as its first reading is acknowledged waits for its lease to end.
    work(inserting(), scenario, lease=1.0, heartbeat=0.2)
    assert effects(outbox) == list(range(150))
    assert outbox.one("SELECT max(attempts) FROM outbox.delivery") == 1


def test_while_redis_is_away_outcomes_still_reach_postgres(
    outbox: Any, work: Any, until: Any, redis_server: Any
) -> None:
    app, started, go = workers.App(), asyncio.Event(), asyncio.Event()

    @app.handler("e")
    async def h(n: int) -> None:
        if n == 1:
            started.set()
            await go.wait()

    outbox.attach("h", "e")
    outbox.publish("e", {"n": 1})

    async def scenario(worker: workers.Worker) -> None:
        await started.wait()
        redis_server.kill()
        go.set()
        await until(lambda: outbox.count("done") == 1)
        # Its acknowledgement waits for Redis; a retry, driven from PostgreSQL, does not.
        outbox.write("e", {"n": 2})
        outbox.sql.execute(
            "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
            " SELECT id, 'h', created_at, 'retrying', 1, now() FROM outbox.event WHERE payload->>'n' = '2'"
        )
        await until(lambda: outbox.count("done") == 2)
        await asyncio.to_thread(redis_server.start)
        await until(lambda: not worker._lanes["h"].active)

    work(app, scenario)


@pytest.mark.oldest
def test_killed_client_connections_lose_nothing(outbox: Any, work: Any, until: Any) -> None:
    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        for turn in range(5):
            outbox.publish("e", *({"n": n} for n in range(20 * turn, 20 * turn + 20)))
            await until(lambda turn=turn: outbox.count("done") > 20 * turn)
            with contextlib.suppress(Exception):
                outbox.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until(lambda: outbox.count("done") == 100 and outbox.pending("e", "h") == 0)

    work(inserting(), scenario, lease=1.0, heartbeat=0.2)
    assert effects(outbox) == list(range(100))


@pytest.mark.parametrize("payload", ["{", "[1]", '"x"', "NaN", '{"n": "' + "x" * 100, "[" * 5000 + "]" * 5000])
def test_an_entry_that_no_event_row_stands_behind_dies_visibly_and_blocks_nobody(
    payload: str, outbox: Any, work: Any, until: Any
) -> None:
    app = workers.App()

    @app.handler("e", max_attempts=1)
    async def h(n: int) -> None: ...

    outbox.attach("h", "e")
    ghost = "01a1fd2e-2201-70d1-bfff-8e2d6b0a7440"
    fields = {"id": ghost, "name": "e", "key": "k", "payload": payload, "headers": "?", "at": "1700000000000000"}
    outbox.redis.xadd(KEY, fields, id="1-1")
    outbox.redis.xadd(KEY, fields | {"name": "a\0b"}, id="1-2")
    outbox.publish("e", {"n": 1})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.states().get(ghost) == "dead" and outbox.count("done") == 1)
        await until(lambda: outbox.pending("e", "h") == 0)

    work(app, scenario)
    assert outbox.one("SELECT payload #>> '{}' FROM outbox.dead_letter") == payload


def test_large_payloads_are_handled_and_held_in_bounds(outbox: Any, work: Any, until: Any) -> None:
    app, sizes = workers.App(), []
    large = "x" * (255 * 1024)

    @app.handler("e")
    async def h(text: str) -> None:
        sizes.append(len(text))

    outbox.attach("h", "e")
    for _ in range(8):
        outbox.publish("e", *({"text": large} for _ in range(10)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 80)

    work(app, scenario)
    assert sizes == [len(large)] * 80


def test_runs_that_swallow_their_cancellation_starve_no_other_of_connections(
    outbox: Any, work: Any, until: Any
) -> None:
    app, release = workers.App(), asyncio.Event()

    @app.handler("e", timeout=1.0, concurrency=2, max_attempts=1)
    async def h(n: int, session: AsyncSession) -> None:
        await session.execute(INSERT, {"n": n})
        while n < 4 and not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(6)))

    async def scenario(worker: workers.Worker) -> None:
        try:
            await until(lambda: outbox.count("dead") == 4 and outbox.count("done") == 2)
        finally:
            release.set()
        await until(lambda: not worker._lanes["h"]._abandoned)

    work(app, scenario)
    assert effects(outbox) == [4, 5]


def test_an_integrity_error_inside_a_savepoint_is_the_handlers_own(outbox: Any, work: Any, until: Any) -> None:
    app, caught = workers.App(), []
    once = text("INSERT INTO once VALUES (:n)")

    @app.handler("e", max_attempts=1)
    async def h(n: int, guarded: bool, session: AsyncSession) -> None:
        await session.execute(INSERT, {"n": n})
        try:
            if guarded:
                async with session.begin_nested():
                    await session.execute(once, {"n": 0})
            else:
                await session.execute(once, {"n": 0})
        except IntegrityError:
            caught.append(n)

    outbox.sql.execute("INSERT INTO once VALUES (0)")
    outbox.attach("h", "e")
    outbox.publish("e", {"n": 1, "guarded": True}, {"n": 2, "guarded": False})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1 and outbox.count("dead") == 1)

    work(app, scenario)
    assert sorted(caught) == [1, 2]
    assert effects(outbox) == [1]
    assert "current transaction is aborted" in outbox.one("SELECT error FROM outbox.dead_letter")


def test_a_constraint_that_fails_at_commit_is_a_failed_attempt_not_a_superseded_one(
    outbox: Any, work: Any, until: Any
) -> None:
    app = workers.App()

    @app.handler("e", max_attempts=1)
    async def h(n: int, session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO late VALUES (:n)"), {"n": n})
        await session.execute(INSERT, {"n": n})

    outbox.sql.execute("CREATE TABLE late (n integer, UNIQUE (n) DEFERRABLE INITIALLY DEFERRED)")
    outbox.sql.execute("INSERT INTO late VALUES (1)")
    outbox.attach("h", "e")
    outbox.publish("e", {"n": 1}, {"n": 2})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1 and outbox.count("dead") == 1)

    work(app, scenario)
    assert effects(outbox) == [2]
    assert "UniqueViolation" in outbox.one("SELECT error FROM outbox.dead_letter")


@pytest.mark.parametrize("superseded", [False, True])
def test_what_a_hook_writes_before_commit_stands_or_falls_with_the_outcome(
    superseded: bool, outbox: Any, work: Any, until: Any
) -> None:
    app = workers.App()

    @app.handler("e")
    async def h(n: int, session: AsyncSession, event: workers.Event) -> None:
        @hooks.listens_for(session.sync_session, "before_commit")
        def _audit(inner: Session) -> None:
            inner.execute(INSERT, {"n": 100 + n})

        await session.execute(INSERT, {"n": n})
        if superseded:
            outbox.sql.execute(
                "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
                " SELECT id, 'h', created_at, 'done', 1 FROM outbox.event"
            )

    outbox.attach("h", "e")
    outbox.publish("e", {"n": 1})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1 and outbox.pending("e", "h") == 0)

    work(app, scenario)
    assert effects(outbox) == ([] if superseded else [1, 101])


def test_a_session_of_the_handlers_own_is_none_of_the_workers_business(
    outbox: Any, work: Any, until: Any, settings: Settings
) -> None:
    app = workers.App()

    @app.handler("e", max_attempts=1)
    async def h(n: int, session: AsyncSession) -> None:
        engine = create_async_engine(settings.sqlalchemy_url())
        async with AsyncSession(engine) as own:
            await own.execute(INSERT, {"n": 10 + n})
            await own.commit()
        await engine.dispose()
        await session.execute(INSERT, {"n": n})
        if n == 2:
            raise RuntimeError

    outbox.attach("h", "e")
    outbox.publish("e", {"n": 1}, {"n": 2})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1 and outbox.count("dead") == 1)

    work(app, scenario)
    assert effects(outbox) == [1, 11, 12]


@pytest.mark.oldest
def test_deadlocked_transactions_are_repeated_in_place(outbox: Any, work: Any, until: Any) -> None:
    app, runs, both = workers.App(), [], asyncio.Event()
    update = text("UPDATE once SET n = n WHERE n = :n")

    @app.handler("e", max_attempts=1)
    async def h(first: int, second: int, session: AsyncSession) -> None:
        await session.execute(update, {"n": first})
        runs.append(first)
        if len(runs) >= 2:
            both.set()
        await both.wait()
        await session.execute(update, {"n": second})
        await session.execute(INSERT, {"n": first})

    outbox.sql.execute("INSERT INTO once VALUES (1), (2)")
    outbox.attach("h", "e")
    outbox.publish("e", {"first": 1, "second": 2}, {"first": 2, "second": 1})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 2)

    work(app, scenario)
    assert effects(outbox) == [1, 2]
    assert len(runs) == 3


def test_a_connection_that_dies_with_the_last_statement_applies_once(
    outbox: Any, work: Any, until: Any, outage: Outage
) -> None:
    app, runs = workers.App(), []

    @app.handler("e", max_attempts=1)
    async def h(n: int, session: AsyncSession) -> None:
        runs.append(n)
        await session.execute(INSERT, {"n": n})
        if len(runs) == 1:
            # After the handler's last statement, before the worker's.
            outage.terminate(outbox.sql)

    outbox.attach("h", "e")
    outbox.publish("e", {"n": 1})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    assert runs == [1, 1]
    assert effects(outbox) == [1]


def test_more_runs_at_once_than_postgres_lets_in_cost_no_attempt(
    outbox: Any, until: Any, outage: Outage, settings: Settings
) -> None:
    app = workers.App()

    @app.handler("e", concurrency=30)
    async def h(n: int, session: AsyncSession) -> None:
        await session.execute(INSERT, {"n": n})
        await asyncio.sleep(0.01)

    role = f"few_{outage.database}"
    outage.admin.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 10 IN ROLE pg_read_all_data, pg_write_all_data")
    outbox.sql.execute(f"GRANT USAGE ON SCHEMA outbox TO {role}")
    url = settings.libpq_url().replace("postgres@", f"{role}@", 1)
    limited = Settings(database_url=url, redis_url=settings.redis_url, _env_file=None)  # type: ignore[arg-type, call-arg]
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(200)))

    async def main() -> None:
        async with workers.Worker(app, limited):
            await until(lambda: outbox.count("done") == 200)

    try:
        asyncio.run(main())
    finally:
        outbox.sql.execute(f"DROP OWNED BY {role}")
        outage.admin.execute(f"DROP ROLE {role}")
    assert effects(outbox) == list(range(200))
    assert outbox.one("SELECT max(attempts) FROM outbox.delivery") == 1


def test_a_transport_that_was_closed_under_its_connection_is_a_lost_connection(settings: Settings) -> None:
    """uvloop raises a RuntimeError then, which nobody waits out."""

    async def main() -> None:
        servers = link.connect(settings.redis_url.get_secret_value())
        at = servers.at("any")
        pool = at.connection_pool
        connection = await pool.get_connection()
        connection._writer.transport.abort()
        await asyncio.sleep(0)
        with pytest.raises(link.Unreachable):
            await connection.send_command("PING")
        await pool.release(connection)
        assert await link.command(at, "ECHO", "next") == b"next"
        await servers.aclose()

    uvloop.run(main())
