"""Outcomes that PostgreSQL does not take, for what is in them or because somebody holds their row: no other waits."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import workers
from outbox import migrations
from outbox.settings import Settings
from workers import Event

INSERT = text("INSERT INTO effects VALUES (:n)")
ALL = 20
HELD = 5


@pytest.fixture(autouse=True)
def _impatient(outbox: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.delivery.REFUSED_AGAIN", 0.3)
    monkeypatch.setattr("workers.transaction.WAIT_BRIEFLY", "SET LOCAL lock_timeout = 200")
    # Without a unique key, so that a second application shows.
    outbox.sql.execute("CREATE TABLE effects (n integer)")


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set aside comes again long after a stop, which takes no longer than it must."""
    monkeypatch.setattr("workers.delivery.REFUSED_AGAIN", 3600.0)
    monkeypatch.setattr("workers.worker.INTERRUPT_GRACE", 1.0)


def effects(outbox: Any) -> list[int]:
    return [row[0] for row in outbox.sql.execute("SELECT n FROM effects ORDER BY n").fetchall()]


class Handlers:
    """Handler `h` of event `e` in one of several kinds. Event `HELD` waits until it is told to go on."""

    def __init__(self, kind: str) -> None:
        self.app = workers.App()
        self.runs: list[int] = []
        self.inside, self.go = asyncio.Event(), asyncio.Event()
        declare = self.app.handler(
            "e", name="h", **{"batch": {"batch": 8}, "once": {"at_most_once": True}}.get(kind, {})
        )
        {"batch": self._batch, "transactional": self._transactional}.get(kind, self._plain)(declare)

    async def _run(self, numbers: list[int], session: AsyncSession | None = None) -> None:
        self.runs += numbers
        if session is not None:
            await session.execute(INSERT, [{"n": n} for n in numbers])
        if HELD in numbers and not self.go.is_set():
            self.inside.set()
            await self.go.wait()

    def _batch(self, declare: Any) -> None:
        @declare
        async def several(events: list[Event], session: AsyncSession) -> None:
            await self._run([event.payload["n"] for event in events], session)

    def _transactional(self, declare: Any) -> None:
        @declare
        async def one(n: int, session: AsyncSession) -> None:
            await self._run([n], session)

    def _plain(self, declare: Any) -> None:
        @declare
        async def plain(n: int) -> None:
            await self._run([n])


@pytest.mark.parametrize(
    ("kind", "attempt", "end"),
    [
        ("plain", "first", "commits"),
        ("plain", "first", "rolls back"),
        ("plain", "retry", "rolls back"),
        ("transactional", "first", "commits"),
        ("transactional", "first", "rolls back"),
        ("transactional", "retry", "rolls back"),
        ("batch", "first", "commits"),
        ("batch", "retry", "rolls back"),
        ("once", "first", "rolls back"),
        ("once", "retry", "rolls back"),
    ],
)
def test_an_outcome_whose_row_another_transaction_holds_delays_its_own_event_only(
    outbox: Any,
    settings: Settings,
    work: Any,
    until: Any,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    attempt: str,
    end: str,
) -> None:
    handlers = Handlers(kind)
    outbox.attach("h", "e")
    if attempt == "first":
        outbox.publish("e", *({"n": n} for n in range(ALL)))
    else:
        outbox.write("e", *({"n": n} for n in range(ALL)))
        outbox.sql.execute(
            "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
            " SELECT id, 'h', created_at, 'retrying', 1, now() FROM outbox.event"
        )

    async def scenario(worker: workers.Worker) -> None:
        await handlers.inside.wait()
        with psycopg.connect(settings.libpq_url()) as holder:
            if attempt == "first" and kind != "once":
                holder.execute(
                    "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
                    " SELECT id, 'h', created_at, 'done', 1 FROM outbox.event WHERE payload->>'n' = %s",
                    [str(HELD)],
                )
            else:
                holder.execute(
                    "SELECT FROM outbox.delivery d JOIN outbox.event e ON e.id = d.event_id"
                    " WHERE e.payload->>'n' = %s FOR UPDATE OF d",
                    [str(HELD)],
                )
            handlers.go.set()
            await until(lambda: "delivery.held" in "".join(capsys.readouterr()))
            more = outbox.publish("e", *({"n": n} for n in range(ALL, 2 * ALL)))
            await until(lambda: outbox.count("done") == 2 * ALL - 1)
            assert set(more) <= set(outbox.states())
            assert worker._up.is_set()
            (holder.commit if end == "commits" else holder.rollback)()
        await until(lambda: outbox.count("done") == 2 * ALL and outbox.pending("e", "h") == 0)

    work(handlers.app, scenario, lease=1.0, heartbeat=0.2)
    if kind in ("transactional", "batch"):
        assert effects(outbox) == [n for n in range(2 * ALL) if n != HELD or end == "rolls back"]
    else:
        # What it did is done: only its record was late.
        assert sorted(handlers.runs) == list(range(2 * ALL))
    last = 2 if attempt == "retry" else 1
    assert outbox.one("SELECT max(attempts), max(crashes) FROM outbox.delivery") == (last, 0)
    assert outbox.one("SELECT count(*) FROM outbox.dead_letter") == 0


@pytest.mark.parametrize("kind", ["left behind", "marked"])
def test_what_a_worker_writes_before_a_run_is_not_waited_for_by_others(
    outbox: Any, settings: Settings, work: Any, until: Any, kind: str
) -> None:
    """Taking over what a dead worker left, and the mark of a run that must not be repeated."""
    handlers = Handlers("once" if kind == "marked" else "plain")
    handlers.go.set()
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(ALL)))
    if kind == "left behind":
        outbox.redis.xreadgroup("h", "one that died", {"outbox:{e}": ">"})

    with psycopg.connect(settings.libpq_url()) as holder:
        holder.execute(
            "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
            " SELECT id, 'h', created_at, 'done', 1 FROM outbox.event WHERE payload->>'n' = %s",
            [str(HELD)],
        )

        async def scenario(worker: workers.Worker) -> None:
            await until(lambda: outbox.count("done") == ALL - 1 and outbox.pending("e", "h") == 1)
            holder.rollback()
            await until(lambda: outbox.count("done") == ALL and outbox.pending("e", "h") == 0)

        work(handlers.app, scenario, lease=1.0, heartbeat=0.2)
    assert sorted(handlers.runs) == list(range(ALL))


def test_a_lease_is_renewed_while_somebody_holds_another_ones_row(
    outbox: Any, settings: Settings, work: Any, until: Any
) -> None:
    handlers = Handlers("plain")
    outbox.attach("h", "e")
    outbox.write("e", {"n": HELD}, {"n": 1})
    outbox.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " SELECT id, 'h', created_at, 'retrying', 1, now() FROM outbox.event"
    )
    other = asyncio.Event()

    @handlers.app.handler("f", name="g")
    async def long(n: int) -> None:
        await other.wait()

    outbox.attach("g", "f")
    outbox.write("f", {"n": 0})
    outbox.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " SELECT id, 'g', created_at, 'retrying', 1, now() FROM outbox.event WHERE name = 'f'"
    )

    def due() -> Any:
        return outbox.one("SELECT due_at FROM outbox.delivery WHERE handler = 'g' AND lease IS NOT NULL")

    async def scenario(worker: workers.Worker) -> None:
        await handlers.inside.wait()
        await until(due)
        with psycopg.connect(settings.libpq_url()) as holder:
            holder.execute("SELECT FROM outbox.delivery WHERE handler = 'h' AND state = 'retrying' FOR UPDATE")
            for _ in range(3):
                before = due()
                await until(lambda before=before: due() > before)
        other.set()
        handlers.go.set()
        await until(lambda: outbox.count("done") == 3)

    work(handlers.app, scenario, lease=1.0, heartbeat=0.2)
    assert sorted(handlers.runs) == [1, HELD]


@pytest.mark.usefixtures("brief")
def test_an_outcome_that_is_set_aside_when_its_worker_stops_is_handed_back_and_is_no_crash(
    outbox: Any, settings: Settings, work: Any, until: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = Handlers("plain")
    outbox.attach("h", "e")
    outbox.publish("e", {"n": HELD})

    with psycopg.connect(settings.libpq_url()) as holder:

        async def scenario(worker: workers.Worker) -> None:
            await handlers.inside.wait()
            holder.execute(
                "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
                " SELECT id, 'h', created_at, 'done', 1 FROM outbox.event"
            )
            handlers.go.set()
            await until(lambda: "delivery.held" in "".join(capsys.readouterr()))

        work(handlers.app, scenario)
        holder.rollback()

    async def finish(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1)

    # Not after a lease: at once.
    work(handlers.app, finish, lease=3600.0)
    assert handlers.runs == [HELD, HELD]
    assert outbox.one("SELECT attempts, crashes FROM outbox.delivery") == (1, 0)


@pytest.mark.usefixtures("brief")
def test_an_outcome_that_was_set_aside_is_tried_once_more_when_its_worker_stops(
    outbox: Any, settings: Settings, work: Any, until: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = Handlers("plain")
    outbox.attach("h", "e")
    outbox.publish("e", {"n": HELD})

    async def scenario(worker: workers.Worker) -> None:
        await handlers.inside.wait()
        with psycopg.connect(settings.libpq_url()) as holder:
            holder.execute(
                "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
                " SELECT id, 'h', created_at, 'done', 1 FROM outbox.event"
            )
            handlers.go.set()
            await until(lambda: "delivery.held" in "".join(capsys.readouterr()))
            holder.rollback()

    work(handlers.app, scenario)
    assert (outbox.count("done"), outbox.pending("e", "h"), handlers.runs) == (1, 0, [HELD])


@pytest.mark.usefixtures("brief")
def test_a_retry_whose_row_is_held_keeps_no_other_from_being_handed_back(
    outbox: Any, settings: Settings, work: Any, until: Any
) -> None:
    app, inside, go = workers.App(), asyncio.Event(), asyncio.Event()

    @app.handler("e", name="h", concurrency=1)
    async def first(n: int) -> None:
        inside.set()
        await go.wait()

    outbox.attach("h", "e")
    outbox.write("e", *({"n": n} for n in range(ALL)))
    outbox.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " SELECT id, 'h', created_at, 'retrying', 1, now() FROM outbox.event"
    )
    leased = "SELECT count(*) FROM outbox.delivery WHERE lease IS NOT NULL"
    waiting = (
        "SELECT event_id::text FROM outbox.delivery WHERE lease IS NOT NULL AND event_id::text <> %s LIMIT 1 FOR UPDATE"
    )

    with psycopg.connect(settings.libpq_url()) as holder:

        async def scenario(worker: workers.Worker) -> None:
            await inside.wait()
            await until(lambda: outbox.one(leased) > 1)
            [running] = worker._lanes["h"]._running
            holder.execute(waiting, [running.event_id])
            worker.request_stop(now=True)

        work(app, scenario)
        assert outbox.one(leased) == 1
    assert outbox.one("SELECT max(attempts), max(crashes) FROM outbox.delivery") == (1, 0)


TAKEN = "PostgreSQL did not take the error of this attempt: CheckViolation (23514), constraint clean"


@pytest.mark.parametrize("final", [False, True])
def test_an_error_that_the_database_refuses_is_recorded_as_such_and_delays_nobody(
    outbox: Any, work: Any, until: Any, capsys: pytest.CaptureFixture[str], final: bool
) -> None:
    app = workers.App()

    @app.handler("e", name="h", max_attempts=1 if final else 2, backoff=100)
    async def fails(n: int) -> None:
        if n == HELD:
            raise ValueError("an ugly word")
        if n % 2:
            raise ValueError("a nice word")

    outbox.sql.execute("ALTER TABLE outbox.delivery ADD CONSTRAINT clean CHECK (error NOT LIKE '%ugly%')")
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(ALL)))
    state = "dead" if final else "retrying"

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") + outbox.count(state) == ALL and outbox.pending("e", "h") == 0)
        assert worker._up.is_set()

    work(app, scenario)
    found = outbox.sql.execute("SELECT error FROM outbox.delivery WHERE state = %s ORDER BY error", [state]).fetchall()
    assert [row[0].partition(" (at ")[0] for row in found] == [TAKEN] + 9 * ["ValueError: a nice word"]
    if final:
        assert outbox.one("SELECT count(*) FROM outbox.dead_letter WHERE error = %s", TAKEN) == 1
    logged = "".join(capsys.readouterr())
    assert "delivery.refused" in logged
    assert "Failing row" not in logged


@pytest.mark.parametrize("kind", ["plain", "transactional", "batch"])
def test_what_no_outcome_can_be_written_for_is_kept_until_somebody_mends_it(
    outbox: Any, work: Any, until: Any, kind: str
) -> None:
    handlers = Handlers(kind)
    handlers.go.set()
    outbox.attach("h", "e")
    events = outbox.write("e", *({"n": n} for n in range(ALL)))
    refused = events[HELD][0]
    outbox.sql.execute(sql.SQL("ALTER TABLE outbox.delivery ADD CONSTRAINT odd CHECK (event_id <> {})").format(refused))
    outbox.push("e", events)

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == ALL - 1)
        outbox.publish("e", *({"n": n} for n in range(ALL, 2 * ALL)))
        await until(lambda: outbox.count("done") == 2 * ALL - 1 and outbox.pending("e", "h") == 1)
        outbox.sql.execute("ALTER TABLE outbox.delivery DROP CONSTRAINT odd")
        if kind != "plain":
            # It failed, as its transaction did: a retry.
            await until(lambda: outbox.count("retrying") == 1)
            outbox.sql.execute("UPDATE outbox.delivery SET due_at = now() WHERE state = 'retrying'")
        await until(lambda: outbox.count("done") == 2 * ALL and outbox.pending("e", "h") == 0)

    work(handlers.app, scenario, lease=1.0, heartbeat=0.2)
    if kind == "plain":
        assert sorted(handlers.runs) == list(range(2 * ALL))
    else:
        assert effects(outbox) == list(range(2 * ALL))


@pytest.fixture
def role(outbox: Any) -> Iterator[str]:
    """A role that may do what workers do."""
    name = f"worker_{uuid.uuid4().hex[:8]}"
    outbox.sql.execute(f"CREATE ROLE {name} LOGIN")
    outbox.sql.execute(migrations.roles_sql(worker=name))
    yield name
    outbox.sql.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", [name])
    outbox.sql.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_a_privilege_that_is_missing_is_complained_of_until_it_is_granted(
    outbox: Any, settings: Settings, until: Any, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = Handlers("plain")
    handlers.go.set()
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(ALL)))
    outbox.sql.execute(f"REVOKE INSERT ON outbox.delivery FROM {role}")
    parts = urlsplit(settings.libpq_url())
    url = urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))
    logged = ""

    def complained() -> bool:
        nonlocal logged
        logged += "".join(capsys.readouterr())
        return "server.refuses" in logged

    async def main() -> None:
        async with workers.Worker(handlers.app, settings.model_copy(update={"database_url": SecretStr(url)})):
            await until(complained)
            outbox.sql.execute(f"GRANT INSERT ON outbox.delivery TO {role}")
            await until(lambda: outbox.count("done") == ALL and outbox.pending("e", "h") == 0)

    asyncio.run(main())
    assert "permission denied for table delivery" in logged
    assert "outbox migrate --roles-sql" in logged
    assert sorted(handlers.runs) == list(range(ALL))
    assert outbox.one("SELECT max(attempts) FROM outbox.delivery") == 1
