"""The roles of roles.sql at work: the real writer, relay and worker, each logged in as its own role."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from forking import Forked, Programs
from psycopg import sql
from pydantic import SecretStr
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from waiting import wait_for

import outbox
from outbox import admin, migrations
from outbox.health import Servers
from outbox.settings import Settings
from relay.installation import Installation

TASKS = """
from pathlib import Path
from sqlalchemy import text
from sqlalchemy.orm import Session
import outbox, workers
from workers.backoff import Backoff

app = workers.App()
QUICK = Backoff(initial=0.01, jitter=0)

@app.handler("paid")
def book(session: Session, number: int) -> str:
    session.execute(text("INSERT INTO booking VALUES (:number)"), {"number": number})
    outbox.add(session, "booked", number=number)
    return "booked"

@app.handler("booked")
async def announce(number: int) -> str:
    return "announced"

@app.handler("paid", backoff=QUICK)
def stumble(number: int, context: workers.Context) -> str:
    if context.attempt == 1:
        raise RuntimeError("once")
    return "stumbled"

@app.handler("paid", backoff=QUICK, max_attempts=2)
def refuse(number: int) -> None:
    if not Path("mended").exists():
        raise RuntimeError("twice")
"""

REFUSED = {
    "writer": [
        "SELECT * FROM outbox.event",
        "SELECT * FROM outbox.tick",
        "SELECT * FROM outbox.delivery",
        "SELECT * FROM outbox.handler",
        "INSERT INTO outbox.handler (name, event_name) VALUES ('mine', 'paid')",
        "UPDATE outbox.event SET payload = '{}'",
        "DELETE FROM outbox.event",
        "TRUNCATE outbox.event",
        "SELECT nextval('outbox.asleep')",
        "SELECT outbox.make_partitions(current_date, current_date + 30)",
    ],
    "relay": [
        "UPDATE outbox.event SET payload = '{}'",
        "DELETE FROM outbox.event",
        "UPDATE outbox.delivery SET state = 'done', due_at = NULL",
        "DELETE FROM outbox.delivery",
        "SELECT * FROM booking",
    ],
    "worker": [
        "UPDATE outbox.event SET payload = '{}'",
        "DELETE FROM outbox.event",
        "DELETE FROM outbox.delivery",
        "DELETE FROM outbox.handler",
        "INSERT INTO outbox.tick (id, snapshot) VALUES (1, pg_current_snapshot())",
    ],
}


def as_role(url: str, role: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))


@pytest.fixture
def roles(database_url: str) -> Iterator[dict[str, str]]:
    """Three roles that may log in and do what roles.sql says, by their part."""
    suffix = uuid.uuid4().hex[:8]
    names = {part: f"{part}_{suffix}" for part in ("writer", "relay", "worker")}
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("CREATE TABLE booking (number integer)")
        for name in names.values():
            owner.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
        owner.execute(migrations.roles_sql(**names).encode())
        owner.execute(sql.SQL("GRANT INSERT, SELECT ON booking TO {}").format(sql.Identifier(names["worker"])))
        yield names
        for name in names.values():
            owner.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", [name])
            owner.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))


@pytest.fixture
def start(programs: Programs, tmp_path: Path, settings: Settings) -> Iterator[Callable[..., Path]]:
    """Start one of our programs under a role: `start(role, *arguments)`; its log."""
    started: list[Forked] = []

    def begin(role: str, *arguments: str) -> Path:
        environment = os.environ | {
            "OUTBOX_DATABASE_URL": as_role(settings.libpq_url(), role),
            "OUTBOX_REDIS_URL": settings.redis_url.get_secret_value(),
            "OUTBOX_LOG_FORMAT": "logfmt",
            "PYTHONPATH": os.getcwd(),
        }
        log = tmp_path / f"{role}.log"
        with log.open("wb") as out:
            started.append(
                programs.start(
                    ["-P", "-m", "console.main", *arguments], cwd=tmp_path, env=environment, stdout=out, stderr=out
                )
            )
        return log

    yield begin
    for process in started:
        process.terminate()
    for process in started:
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_unless_denied(condition: Callable[[], Any], what: str, logs: list[Path]) -> Any:
    """Wait until the condition holds; fails as soon as a log tells of a right that is missing."""

    def met() -> Any:
        said = "".join(log.read_text() for log in logs)
        assert "permission denied" not in said, said
        return condition()

    return wait_for(met, what)


def test_writer_relay_and_worker_do_their_whole_work_under_their_own_roles(
    database_url: str, tmp_path: Path, roles: dict[str, str], start: Callable[..., Path]
) -> None:
    """Done, retried, dead and replayed by the owner, a handler's own event, and done_to behind all of it."""
    (tmp_path / "tasks.py").write_text(TASKS)
    logs = [start(roles["relay"], "relay"), start(roles["worker"], "worker", "tasks:app")]
    engine = create_engine(as_role(database_url, roles["writer"]).replace("postgresql://", "postgresql+psycopg://"))
    with Session(engine) as session:
        for number in range(3):
            outbox.add(session, "paid", number=number, _key="k", _headers={"a": "b"})
        session.commit()
    engine.dispose()
    with psycopg.connect(database_url, autocommit=True) as owner:

        def counts(handler: str) -> dict[str, int]:
            query = "SELECT state, count(*) FROM outbox.delivery WHERE handler = %s GROUP BY state"
            return dict(owner.execute(query, [handler]).fetchall())

        wait_unless_denied(
            lambda: all(counts(handler) == {"done": 3} for handler in ("book", "announce", "stumble")), "done", logs
        )
        results = "SELECT handler, min(result #>> '{}') FROM outbox.delivery WHERE state = 'done' GROUP BY handler"
        kept = {"book": "booked", "announce": "announced", "stumble": "stumbled"}
        assert dict(owner.execute(results).fetchall()) == kept
        wait_unless_denied(lambda: counts("refuse") == {"dead": 3}, "dead letters", logs)
        (tmp_path / "mended").touch()
        assert admin.replay(database_url, admin.Selection(handler="refuse"), reason="mended").count == 3
        wait_unless_denied(lambda: counts("refuse") == {"done": 3}, "the replay", logs)
        assert owner.execute("SELECT array_agg(number ORDER BY number) FROM booking").fetchone() == ([0, 1, 2],)
        caught_up = (
            "SELECT bool_and(h.attached AND (h.done_tick, h.done_seq) >= (r.tick, 0))"
            " FROM outbox.handler AS h, outbox.relay AS r"
        )
        wait_unless_denied(lambda: owner.execute(caught_up.encode()).fetchone() == (True,), "done_to", logs)
    # It makes no partitions, says so once, and goes on.
    wait_unless_denied(lambda: "upkeep.not_allowed" in logs[0].read_text(), "the advice", logs)
    assert "`outbox upkeep`" in logs[0].read_text()


def test_upkeep_by_a_role_without_tables_thins_ticks_and_says_that_the_rest_is_the_owners(
    programs: Programs, database_url: str, roles: dict[str, str]
) -> None:
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("INSERT INTO outbox.tick (id, snapshot) SELECT n, '3:3:' FROM generate_series(1, 50) AS n")

        def keep(url: str) -> subprocess.CompletedProcess[str]:
            environment = os.environ | {"OUTBOX_DATABASE_URL": url}
            return programs.run(["-m", "console.main", "upkeep", "-o", "json"], env=environment)

        result = keep(as_role(database_url, roles["relay"]))
        assert (result.returncode, json.loads(result.stdout)["allowed"]) == (3, False)
        assert json.loads(result.stdout)["ticks"] > 40
        assert "as the owner" in result.stderr
        result = keep(database_url)
        assert (result.returncode, json.loads(result.stdout)["allowed"]) == (0, True)
        # A member of the owner's role makes partitions for the owner.
        member = roles["relay"]
        owner.execute(sql.SQL("GRANT postgres TO {}").format(sql.Identifier(member)))
        owner.execute("DROP TABLE outbox.event_p" + (datetime.now(UTC) + timedelta(days=7)).strftime("%Y%m%d"))  # type: ignore[call-overload]
        result = keep(as_role(database_url, member))
        assert (result.returncode, len(json.loads(result.stdout)["made"])) == (0, 1)
        assert owner.execute(
            "SELECT DISTINCT tableowner::text FROM pg_tables WHERE schemaname = 'outbox'"
        ).fetchall() == [("postgres",)]
        owner.execute(sql.SQL("REVOKE postgres FROM {}").format(sql.Identifier(member)))


@pytest.mark.parametrize("part", ["writer", "relay", "worker"])
def test_no_role_can_do_more(database_url: str, roles: dict[str, str], part: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("INSERT INTO outbox.event (name, payload) VALUES ('paid', '{}')")
    with psycopg.connect(as_role(database_url, roles[part]), autocommit=True) as connection:
        for statement in [*REFUSED[part], "CREATE TABLE outbox.mine ()", "DROP TABLE outbox.event"]:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())


def test_a_writer_needs_no_more_than_its_role_for_every_way_of_adding(database_url: str, roles: dict[str, str]) -> None:
    engine = create_engine(as_role(database_url, roles["writer"]).replace("postgresql://", "postgresql+psycopg://"))
    with Session(engine) as session, session.begin():
        event = outbox.add(session, "paid", number=1)
        with session.begin_nested():
            outbox.add(session, "paid", number=2)
        session.execute(text("SELECT 1"))
    with engine.begin() as connection:
        outbox.add(connection, "paid", number=3)
        connection.execute(outbox.insert("paid", number=4))
    engine.dispose()
    with psycopg.connect(database_url) as owner:
        rows = owner.execute("SELECT payload->>'number' FROM outbox.event ORDER BY seq").fetchall()
    assert rows == [("1",), ("2",), ("3",), ("4",)]
    assert event.name == "paid"


@pytest.mark.parametrize("part", ["relay", "worker"])
def test_what_the_port_with_metrics_asks_may_be_asked_under_the_role(
    roles: dict[str, str], settings: Settings, part: str
) -> None:
    given = settings.model_copy(update={"database_url": SecretStr(as_role(settings.libpq_url(), roles[part]))})
    assert Servers(given).findings() == {"postgresql": None, "schema": None, "redis": None}
    if part == "relay":
        [told] = [family for family in Installation(given).collect() if family.name == "outbox_state_read"]
        assert [sample.value for sample in told.samples] == [1, 1]


def test_the_workers_role_holds_cancels_replays_and_discards_and_the_rest_is_the_owners(
    settings: Settings, roles: dict[str, str]
) -> None:
    with psycopg.connect(settings.libpq_url(), autocommit=True) as owner:
        owner.execute("INSERT INTO outbox.handler (name, event_name) VALUES ('bill', 'paid')")
        rows = owner.execute(
            "INSERT INTO outbox.event (name, payload) SELECT 'paid', '{}' FROM generate_series(1, 3) RETURNING id"
        ).fetchall()
        owner.execute(
            "INSERT INTO outbox.dead_letter (event_id, handler, event_created_at, name, payload, attempts, error)"
            " SELECT id, 'bill', created_at, name, payload, 1, 'x' FROM outbox.event"
        )
    as_worker = settings.model_copy(update={"database_url": SecretStr(as_role(settings.libpq_url(), roles["worker"]))})
    with psycopg.connect(as_worker.libpq_url(), autocommit=True) as worker:
        assert admin.pause(worker, "handler", "bill")
        assert admin.resume(worker, "handler", "bill")
        assert admin.cancel(worker, rows[0][0]).cancelled == ("bill",)
        assert (
            admin.replay(worker, admin.Selection(ids=(rows[1][0],)), edit=admin.Edit.parse(["payload.n=1"])).count == 1
        )
        assert admin.discard(worker, admin.Selection(ids=(rows[2][0],)), reason="x").count == 1
    for change in (
        lambda: admin.forget(as_worker, "bill"),
        lambda: admin.rename(as_worker, "bill", "invoice"),
        lambda: admin.purge(as_worker, admin.Selection(ids=(rows[0][0],)), reason="x"),
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            change()
