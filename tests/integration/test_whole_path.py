"""From `outbox.add` to the handler's effect through `outbox relay` and `outbox worker`, as they are installed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import redis
from forking import Forked, Programs

from console.servers import Redis

pytestmark = pytest.mark.slow

Db = psycopg.Connection[Any]

TASKS = """
from pathlib import Path
from pydantic import BaseModel, Field
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
import outbox
from workers import App, Backoff, Event

app = App()
FIXED = Path(__file__).with_name("fixed")

class Address(BaseModel):
    zip_code: str = Field(alias="zipCode")

@app.handler("ordered")
async def bill(order_id: int, to: Address, text_: str, session: AsyncSession, event: Event) -> None:
    outbox.add(session, "billed", order_id=order_id, zip_code=to.zip_code, size=len(event.payload_json))

@app.handler("billed")
async def note(order_id: int, session: AsyncSession, event: Event) -> None:
    await session.execute(text("INSERT INTO effect VALUES ('note', :id)"), {"id": order_id})

@app.handler("fragile", max_attempts=1)
async def first(n: int, session: AsyncSession) -> None:
    await attempt("first", n, session)

@app.handler("fragile", max_attempts=1)
async def second(n: int, session: AsyncSession) -> None:
    await attempt("second", n, session)

async def attempt(name: str, n: int, session: AsyncSession) -> None:
    if not FIXED.exists():
        raise LookupError("not fixed yet")
    await session.execute(text("INSERT INTO effect VALUES (:name, :n)"), {"name": name, "n": n})
"""

ADD = """
import json, os, sys
import outbox
from pydantic import BaseModel, Field
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

class Address(BaseModel):
    zip_code: str = Field(alias="zipCode")

engine = create_engine(os.environ["OUTBOX_DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://", 1))
with Session(engine) as session:
    for name, payload in json.load(sys.stdin):
        if "to" in payload:
            payload["to"] = Address(**payload["to"])
        outbox.add(session, name, **payload)
    session.commit()
"""


class Installation:
    """A folder with an application, and programs that run there with the same settings."""

    def __init__(self, programs: Programs, folder: Path, database_url: str, redis_server: Redis) -> None:
        self._programs = programs
        self.folder = folder
        (folder / "shop_tasks.py").write_text(TASKS)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
        self.environment = {**kept, "OUTBOX_DATABASE_URL": database_url, "OUTBOX_REDIS_URL": redis_server.url}
        self.running: list[Forked] = []

    def start(self, *arguments: str, **environment: str) -> None:
        """Start `outbox` with these arguments, for good."""
        with (self.folder / f"{arguments[0]}.log").open("ab") as log:
            self.running.append(
                self._programs.start(
                    ["-m", "console.main", *arguments],
                    cwd=self.folder,
                    env=self.environment | environment,
                    stdout=log,
                    stderr=log,
                )
            )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `outbox` with these arguments to its end."""
        return self._programs.run(
            ["-m", "console.main", *arguments], cwd=self.folder, env=self.environment | environment
        )

    def add(self, *events: tuple[str, dict[str, Any]], **environment: str) -> None:
        """Add events in one transaction of a process of its own, like a web process."""
        self._programs.run(
            ["-c", ADD], input=json.dumps(events), cwd=self.folder, env=self.environment | environment
        ).check_returncode()

    def until(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        """Wait for a state. Fails with the programs' logs when it does not come, or when one has ended."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline or any(each.poll() is not None for each in self.running):
                pytest.fail("\n".join(log.read_text() for log in self.folder.glob("*.log")))
            time.sleep(0.02)

    def stop(self) -> None:
        for each in self.running:
            each.send_signal(signal.SIGTERM)
        assert [each.wait(timeout=40) for each in self.running] == [0] * len(self.running)


@pytest.fixture
def installation(programs: Programs, tmp_path: Path, database_url: str, redis_server: Redis) -> Iterator[Installation]:
    made = Installation(programs, tmp_path, database_url, redis_server)
    yield made
    for each in made.running:
        if each.poll() is None:
            each.kill()
            each.wait()


@pytest.fixture
def db(database_url: str) -> Iterator[Db]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE effect (handler text, n int)")
        yield connection


def rows(db: Db, query: str) -> list[tuple[Any, ...]]:
    return db.execute(query.encode()).fetchall()


@pytest.mark.parametrize("where", ["flags", "file"])
def test_another_schema_and_prefix_carry_the_whole_path_and_leave_the_default_ones_alone(
    installation: Installation, db: Db, redis_server: Redis, where: str
) -> None:
    flags: list[str] = ["--schema", "billing", "--prefix", "shop.v2"]
    if where == "file":
        (installation.folder / ".env").write_text("OUTBOX_SCHEMA=billing\nOUTBOX_PREFIX=shop.v2\n")
        flags = []
    assert installation.run("migrate", *flags[:2]).returncode == 0
    installation.start("relay", *flags)
    installation.start("worker", "shop_tasks:app", *flags)
    payload: dict[str, Any] = {"order_id": 7, "to": {"zipCode": "10115"}, "text_": ""}
    stored = {"order_id": 7, "to": {"zip_code": "10115"}, "text_": ""}
    payload["text_"] = "x" * (256 * 1024 - len(json.dumps(stored, separators=(",", ":"))))
    installation.add(("ordered", payload), OUTBOX_SCHEMA="billing")
    installation.until(lambda: rows(db, "SELECT * FROM effect") == [("note", 7)])
    assert rows(db, "SELECT payload FROM billing.event WHERE name = 'billed'") == [
        ({"order_id": 7, "zip_code": "10115", "size": 256 * 1024},)
    ]
    facts = json.loads(installation.run("status", "-o", "json", *flags).stdout)
    assert (facts["schema"], facts["leader"]["listens"]) == ("billing", True)
    assert [worker["handlers"] for worker in facts["workers"]] == [sorted(each["name"] for each in facts["handlers"])]
    assert {handler["workers"] for handler in facts["handlers"]} == {1}
    ((id,),) = rows(db, "SELECT id::text FROM billing.event WHERE name = 'ordered'")
    story = json.loads(installation.run("status", id, "-o", "json", *flags).stdout)
    assert (story["state"], story["redis_error"]) == ("done", None)
    assert [moment["what"] for moment in story["moments"]] == ["added", "committed", "in tick", "published", "done"]
    assert {stream["key"].partition(":")[0] for stream in facts["streams"]} == {"shop.v2"}
    installation.stop()
    for table in ("event", "delivery", "handler"):
        assert rows(db, f"SELECT count(*) FROM outbox.{table}") == [(0,)]
    with redis.Redis.from_url(redis_server.url) as client:
        assert {key.partition(b":")[0] for key in client.scan_iter()} == {b"shop.v2"}


def test_a_replay_beside_running_workers_runs_what_was_asked_for_once_and_nothing_else(
    installation: Installation, db: Db
) -> None:
    installation.start("relay")
    installation.start("worker", "shop_tasks:app", "--processes", "2")
    installation.add(*(("fragile", {"n": n}) for n in range(20)))
    dead = "SELECT count(*) FROM outbox.dead_letter WHERE replayed_at IS NULL"
    installation.until(lambda: rows(db, dead) == [(40,)])
    (installation.folder / "fixed").touch()

    def replayed(*arguments: str) -> dict[str, Any]:
        result = installation.run("replay", *arguments, "--yes", "-o", "json")
        assert result.returncode == 0, result.stderr
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    def letters(condition: str) -> list[str]:
        query = f"SELECT event_id::text FROM outbox.dead_letter WHERE replayed_at IS NULL AND {condition}"
        return [row[0] for row in rows(db, query)]

    # By id: both handlers of that event, no other event.
    chosen = letters("payload->>'n' = '3'")[:1]
    assert replayed(*chosen)["replayed"] == 2
    installation.until(lambda: rows(db, "SELECT * FROM effect ORDER BY 1") == [("first", 3), ("second", 3)])
    # By handler, and only as many as the limit says; the event's row may be gone by then.
    db.execute("DELETE FROM outbox.event WHERE payload->>'n' = '4'")
    db.execute("DELETE FROM outbox.delivery WHERE event_id = ANY(%s::uuid[])", [letters("payload->>'n' = '4'")])
    assert replayed("--handler", "first", "--limit", "5", "--reason", "mended")["replayed"] == 5
    firsts = "SELECT count(*) FROM effect WHERE handler = 'first'"
    installation.until(lambda: rows(db, firsts) == [(6,)])
    assert rows(db, "SELECT count(*) FROM effect WHERE handler = 'second'") == [(1,)]
    # By time: what died before then, and after.
    db.execute("UPDATE outbox.dead_letter SET died_at = died_at - interval '2 hours' WHERE payload->>'n' IN ('7', '8')")
    assert replayed("--event", "fragile", "--until", "1h", "--dry-run")["would_replay"] == len(
        letters("payload->>'n' IN ('7', '8')")
    )
    assert rows(db, firsts) == [(6,)]
    replayed("--event", "fragile", "--until", "1h")
    old = "SELECT DISTINCT n, handler FROM effect WHERE n IN (7, 8) ORDER BY 1, 2"
    both = [(7, "first"), (7, "second"), (8, "first"), (8, "second")]
    installation.until(lambda: rows(db, old) == both)
    assert replayed("--since", "1h", "--event", "other")["replayed"] == 0
    replayed("--all", "--rate", "1000", "--yes")
    installation.until(lambda: rows(db, "SELECT count(*) FROM effect") == [(40,)])
    installation.stop()
    assert rows(db, "SELECT count(DISTINCT (handler, n)), count(*) FROM effect") == [(40, 40)]
    assert rows(db, dead) == [(0,)]
    reasons = rows(db, "SELECT reason, detail->'filter'->>'handler' FROM outbox.audit WHERE reason IS NOT NULL")
    assert reasons == [("mended", "first")]


@pytest.mark.oldest
def test_the_whole_path_runs_with_a_role_for_each_part(installation: Installation, db: Db, database_url: str) -> None:
    suffix = uuid4().hex[:8]
    roles = {part: f"{part}_{suffix}" for part in ("writer", "relay", "worker")}
    grants = installation.run(
        "migrate", "--roles-sql", *(word for part, role in roles.items() for word in (f"--{part}", role))
    )
    for role in roles.values():
        db.execute(f"CREATE ROLE {role} LOGIN".encode())
    try:
        db.execute(grants.stdout.encode())
        db.execute(f"GRANT INSERT ON effect TO {roles['worker']}".encode())
        url = {part: database_url.replace("postgres@", f"{role}@") for part, role in roles.items()}
        installation.start("relay", OUTBOX_DATABASE_URL=url["relay"])
        installation.start("worker", "shop_tasks:app", OUTBOX_DATABASE_URL=url["worker"])
        order = {"order_id": 7, "to": {"zipCode": "10115"}, "text_": ""}
        installation.add(("ordered", order), ("fragile", {"n": 1}), OUTBOX_DATABASE_URL=url["writer"])
        dead = "SELECT count(*) FROM outbox.dead_letter WHERE replayed_at IS NULL"
        installation.until(lambda: rows(db, dead) == [(2,)])
        (installation.folder / "fixed").touch()
        for command in (["status"], ["events"], ["dead"], ["replay", "--handler", "first", "--yes"]):
            result = installation.run(*command, OUTBOX_DATABASE_URL=url["worker"])
            assert (result.returncode, result.stderr) == (0, ""), command
        installation.until(lambda: rows(db, "SELECT * FROM effect ORDER BY 1") == [("first", 1), ("note", 7)])
        users = rows(db, "SELECT usename::text FROM pg_stat_activity WHERE datname = current_database()")
        assert {roles["relay"], roles["worker"]} <= {user for (user,) in users}
        installation.stop()
    finally:
        for each in installation.running:
            each.kill()
            each.wait()
        for role in roles.values():
            db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())
