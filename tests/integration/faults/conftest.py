"""Real relays and workers as processes that can be killed, and what must hold when the dust has settled.

Every test draws a seed, printed when it fails. OUTBOX_TEST_SEED=<seed> repeats one, OUTBOX_TEST_ROUNDS=<n> runs more.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from forking import Programs
from waiting import pauses

from outbox.names import stream_key
from outbox.settings import Settings

HERE = Path(__file__).parent

OWED = """
SELECT count(*) FROM outbox.event AS e JOIN outbox.handler AS h ON h.event_name = e.name
 WHERE NOT EXISTS (SELECT FROM outbox.delivery AS d
                    WHERE d.event_id = e.id AND d.event_created_at = e.created_at AND d.handler = h.name
                      AND d.state = 'done')
"""
"""How many events some handler has not done yet."""


class Program:
    """One of our own programs, in the folder of these tests."""

    def __init__(self, programs: Programs, log: Path, arguments: list[str], environment: dict[str, str]) -> None:
        self.name = log.stem
        self.log = log
        with log.open("ab") as out:
            self.process = programs.start(["-P", *arguments], env=environment, cwd=HERE, stdout=out, stderr=out)
        self._killed = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def fallen(self) -> bool:
        """It ended by itself."""
        return not self._killed and not self.running

    def kill(self) -> None:
        """SIGKILL; doing that twice is fine."""
        self._killed = True
        self.process.kill()
        self.process.wait()


class Cast:
    """The programs of one test, and PostgreSQL and Redis as a bystander sees them."""

    def __init__(self, programs: Programs, settings: Settings, folder: Path) -> None:
        self._interpreter = programs
        self.settings = settings
        self.folder = folder
        self.effects = folder / "effects"
        self.programs: list[Program] = []
        self.sql = psycopg.connect(settings.libpq_url(), autocommit=True)
        self.redis = redis.Redis.from_url(settings.redis_url.get_secret_value())
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OUTBOX_", "PG"))}
        self.environment = inherited | {
            "OUTBOX_DATABASE_URL": settings.libpq_url(),
            "OUTBOX_REDIS_URL": settings.redis_url.get_secret_value(),
            "OUTBOX_LOG_FORMAT": "logfmt",
            "PYTHONUNBUFFERED": "1",
            "FAULTS_EFFECTS": str(self.effects),
        }

    def relay(self) -> Program:
        """`outbox relay`."""
        return self._start("relay", ["-m", "console.main", "relay"])

    def worker(self, *, by_command_line: bool = False) -> Program:
        """`outbox worker`, or the same worker with shorter leases."""
        command = ["-m", "console.main", "worker", "fault_tasks:app"] if by_command_line else ["fault_tasks.py"]
        return self._start("worker", command)

    def _start(self, name: str, arguments: list[str]) -> Program:
        number = 1 + sum(program.name.startswith(name) for program in self.programs)
        program = Program(self._interpreter, self.folder / f"{name}-{number}.log", arguments, self.environment)
        self.programs.append(program)
        return program

    def one(self, statement: str, *parameters: Any) -> Any:
        row = self.sql.execute(statement, parameters).fetchone()
        assert row is not None
        return row[0]

    def wait_for(self, condition: Callable[[], Any], what: str, timeout: float = 120.0) -> Any:
        """Wait until the condition holds and return its value. None of the programs may end by itself meanwhile."""
        for pause in pauses(timeout):
            if value := condition():
                return value
            fallen = [program.name for program in self.programs if program.fallen]
            assert not fallen, f"{fallen} ended while waiting for {what}\n{self.logs()}"
            time.sleep(pause)
        raise AssertionError(f"not within {timeout:g} s: {what}\n{self.report()}\n{self.logs()}")

    # What the relay does

    def register(self, handler: str, event_name: str) -> None:
        """Make a handler known as a worker would, without one that reads."""
        self.sql.execute("INSERT INTO outbox.handler (name, event_name) VALUES (%s, %s)", [handler, event_name])
        self.sql.execute("NOTIFY outbox")

    def await_attached(self) -> None:
        """Wait until every handler reads its main stream."""
        self.wait_for(
            lambda: self.one("SELECT count(*) > 0 AND bool_and(attached) FROM outbox.handler"),
            "handlers to be attached",
        )

    def asleep_until(self) -> int:
        """The flag that writers read: an epoch second in the future while the relay sleeps."""
        return int(self.one("SELECT coalesce(pg_sequence_last_value('outbox.asleep'), 0)"))

    def asleep(self) -> bool:
        return self.asleep_until() > time.time()

    def entries(self, event_name: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """The main stream as it is."""
        return self.redis.xrange(stream_key(self.settings.prefix, event_name))  # type: ignore[no-any-return]

    # What the workers do

    def order(self, count: int) -> list[str]:
        """Add events in one transaction; their ids."""
        rows = self.sql.execute(
            "INSERT INTO outbox.event (name, payload) SELECT 'ordered', json_build_object('n', n)"
            "  FROM generate_series(1, %s) AS n RETURNING id::text",
            [count],
        ).fetchall()
        return [row[0] for row in rows]

    def check_effects(self, ordered: list[str], timeout: float = 120.0) -> None:
        """Wait until all is done: every order must have had its effects once, and nothing else has."""
        self.await_done(timeout)
        for handler in ("book", "charge", "ship"):
            rows = self.sql.execute("SELECT event_id::text FROM effect WHERE handler = %s", [handler]).fetchall()
            assert differences(ordered, [row[0] for row in rows]) == {}, handler
        assert differences(ordered, set(self.effects.read_text().split())) == {}
        assert self.one("SELECT count(*) FROM outbox.dead_letter") == 0

    def await_done(self, timeout: float = 120.0) -> None:
        """Wait until every handler has done every event."""
        self.wait_for(lambda: self.one(OWED) == 0, "all to be done", timeout)

    def report(self) -> str:
        """Where everything stands, for a failure."""
        lines = []
        for title, statement in (
            ("owed, by name", f"SELECT e.name, e.seq, e.xid, e.id {OWED[OWED.index('FROM') :]} ORDER BY e.seq LIMIT 5"),
            (
                "deliveries",
                "SELECT handler, state, max(crashes), count(*) FROM outbox.delivery GROUP BY 1, 2 ORDER BY 1",
            ),
            ("handlers", "SELECT name, attached, done_tick, done_seq, fed_tick, fed_seq FROM outbox.handler"),
            ("relay", "SELECT tick, seq, leader, heartbeat, now() FROM outbox.relay"),
            ("streams", "SELECT name, tick, seq FROM outbox.stream"),
            (
                "in a transaction",
                "SELECT pid, pg_blocking_pids(pid), application_name, state, wait_event,"
                " now() - xact_start, left(query, 99)"
                " FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL",
            ),
        ):
            lines += [f"{title}: {row}" for row in self.sql.execute(statement.encode()).fetchall()]
        for key in sorted(self.redis.keys(f"{self.settings.prefix}:{{*")):
            facts = self.redis.xinfo_stream(key)
            lines.append(f"{key!r}: length {facts['length']}, last {facts['last-generated-id']!r}")
            for group in self.redis.xinfo_groups(key):
                pending = self.redis.xpending_range(key, group["name"], "-", "+", 3)
                lines.append(f"  {group['name']!r}: last {group['last-delivered-id']!r}, pending {pending}")
        return "\n".join(lines)

    def logs(self, lines: int = 15) -> str:
        return "\n".join(
            f"--- {program.name}\n" + "\n".join(program.log.read_text(errors="replace").splitlines()[-lines:])
            for program in self.programs
        )

    def close(self) -> None:
        for program in self.programs:
            program.kill()
        self.sql.close()
        self.redis.close()


def differences(expected: Iterable[Any], found: Iterable[Any]) -> dict[str, list[Any]]:
    """What is lost, ghost or doubled in `found`: empty when each of `expected` is there once and nothing else is."""
    wanted, seen = Counter(expected), Counter(found)
    kinds = {
        "lost": sorted(wanted.keys() - seen.keys()),
        "ghost": sorted(seen.keys() - wanted.keys()),
        "doubled": sorted(item for item, times in seen.items() if times > 1),
    }
    return {kind: items for kind, items in kinds.items() if items}


@pytest.fixture(name="differences")
def _differences() -> Callable[[Iterable[Any], Iterable[Any]], dict[str, list[Any]]]:
    return differences


@pytest.fixture
def seed() -> int:
    """This run's seed: the one that OUTBOX_TEST_SEED names, else a new one."""
    drawn = int(os.environ.get("OUTBOX_TEST_SEED") or secrets.randbits(32))
    print(f"OUTBOX_TEST_SEED={drawn}")  # noqa: T201
    return drawn


@pytest.fixture
def chance(seed: int) -> random.Random:
    """The only source of chance of a test's own."""
    return random.Random(seed)


@pytest.fixture
def cast(programs: Programs, settings: Settings, scratch: Path) -> Iterator[Cast]:
    folder = scratch / f"cast-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    cast = Cast(programs, settings, folder)
    yield cast
    cast.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def working(cast: Cast) -> Cast:
    """A cast whose handlers' effects have a table. Without a unique key, so that one that is applied twice shows."""
    cast.sql.execute("CREATE TABLE effect (handler text NOT NULL, event_id uuid NOT NULL)")
    return cast


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `turn` runs once, or OUTBOX_TEST_ROUNDS times."""
    if "turn" in metafunc.fixturenames:
        metafunc.parametrize("turn", range(int(os.environ.get("OUTBOX_TEST_ROUNDS") or 1)))
