"""The relay's part of the protocol, played by hand, and real worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis as redis_client
from forking import Programs
from waiting import until, wait_for

from outbox.entry import to_microseconds
from outbox.names import stream_key
from outbox.settings import Settings
from workers import App, Worker

ROOT = Path(__file__).resolve().parents[3]


class Outbox:
    """Writes events, publishes them as the relay would, and asks PostgreSQL what came of them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.sql = psycopg.connect(settings.libpq_url(), autocommit=True)
        self.redis = redis_client.Redis.from_url(settings.redis_url.get_secret_value())
        self.tick = 1000

    def attach(self, handler: str, event_name: str, *, attached: bool = True) -> None:
        """Admit a handler as the relay does, its groups on the main stream included."""
        self.sql.execute(
            "INSERT INTO outbox.handler (name, event_name, attached, done_tick, done_seq, fed_tick, fed_seq)"
            " VALUES (%(name)s, %(event)s, %(attached)s, 0, 0, %(fed)s, %(fed)s)"
            " ON CONFLICT (name) DO UPDATE SET attached = excluded.attached, done_tick = 0, done_seq = 0",
            {"name": handler, "event": event_name, "attached": attached, "fed": None if attached else 0},
        )
        if attached:
            with contextlib.suppress(redis_client.ResponseError):
                self.redis.xgroup_create(stream_key("outbox", event_name), handler, id="0", mkstream=True)

    def write(self, name: str, *payloads: dict[str, Any]) -> list[tuple[str, int, int, str]]:
        """Insert events; (id, seq, created_at in microseconds, payload) of each."""
        rows = self.sql.execute(
            "INSERT INTO outbox.event (name, payload) SELECT %s, unnest(%s::json[])"
            " RETURNING id::text, seq, created_at, payload::text",
            [name, [json.dumps(payload) for payload in payloads]],
        ).fetchall()
        return [(row[0], row[1], to_microseconds(row[2]), row[3]) for row in rows]

    def push(self, name: str, events: list[tuple[str, int, int, str]], *, key: str | None = None) -> list[bytes]:
        """Append the entries of events, on the main stream or on `key`."""
        self.tick += 1
        pipeline = self.redis.pipeline(transaction=False)
        for event_id, seq, at, payload in events:
            fields = {"id": event_id, "name": name, "key": "", "payload": payload, "headers": "", "at": str(at)}
            pipeline.xadd(key or stream_key("outbox", name), fields, id=f"{self.tick}-{seq}")
        return list(pipeline.execute())

    def publish(self, name: str, *payloads: dict[str, Any]) -> list[str]:
        """Write and push; the events' ids."""
        events = self.write(name, *payloads)
        self.push(name, events)
        return [event[0] for event in events]

    def one(self, statement: str, *params: Any) -> Any:
        row = self.sql.execute(statement, params).fetchone()
        return None if row is None else row[0] if len(row) == 1 else row

    def states(self) -> dict[str, str]:
        return dict(self.sql.execute("SELECT event_id::text, state FROM outbox.delivery").fetchall())

    def count(self, state: str) -> int:
        return int(self.one("SELECT count(*) FROM outbox.delivery WHERE state = %s", state))

    def pending(self, name: str, handler: str) -> int:
        return int(self.redis.xpending(stream_key("outbox", name), handler)["pending"])

    def close(self) -> None:
        self.sql.close()
        self.redis.close()


@pytest.fixture
def outbox(settings: Settings) -> Iterator[Outbox]:
    box = Outbox(settings)
    yield box
    box.close()


@pytest.fixture(name="until")
def _until() -> Callable[..., Awaitable[Any]]:
    return until


@pytest.fixture(name="wait_for")
def _wait_for() -> Callable[..., Any]:
    return wait_for


@pytest.fixture
def work(settings: Settings) -> Callable[..., None]:
    """Run a scenario beside a worker in this process: `work(app, scenario, **options)`."""

    def run(app: App, scenario: Callable[[Worker], Awaitable[None]], **options: Any) -> None:
        async def main() -> None:
            async with Worker(app, settings, **options) as worker:
                runner = asyncio.create_task(worker.run())
                await scenario(worker)
                worker.request_stop()
                await runner

        asyncio.run(main())

    return run


IMPATIENT = """
import asyncio, sys
import tasks
from outbox.settings import Settings
from workers import Worker

async def main():
    lease, settings = float(sys.argv[1]), Settings()
    times = {"lease": lease, "heartbeat": lease / 4, "standstill": settings.standstill}
    async with Worker(tasks.app, settings, **times) as worker:
        await worker.run()

asyncio.run(main())
"""


class Process:
    """A real worker process running a module of this test's own, with the default lease or a shorter one."""

    def __init__(
        self, programs: Programs, folder: Path, settings: Settings, arguments: list[str], lease: float | None = None
    ) -> None:
        environment = os.environ | {
            "OUTBOX_DATABASE_URL": settings.libpq_url(),
            "OUTBOX_REDIS_URL": settings.redis_url.get_secret_value(),
            "OUTBOX_LOG_FORMAT": "logfmt",
        }
        self.log = folder / f"worker-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.popen = programs.start(
                ["-P", "-m", "workers", "tasks:app", *arguments] if lease is None else ["-c", IMPATIENT, str(lease)],
                cwd=folder,
                env=environment | {"PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()

    def wait(self, timeout: float = 30) -> int:
        return self.popen.wait(timeout)

    def output(self) -> str:
        return self.log.read_text()

    def started(self) -> bool:
        return "worker.started" in self.output()


@pytest.fixture
def start(programs: Programs, tmp_path: Path, settings: Settings) -> Iterator[Callable[..., Process]]:
    """Start worker processes: `start(source_of_tasks, *arguments)` or `start(source_of_tasks, lease=seconds)`, on the
    servers of the test or, with `away=`, on settings that lead nowhere."""
    started: list[Process] = []

    def begin(source: str, *arguments: str, lease: float | None = None, away: Settings | None = None) -> Process:
        (tmp_path / "tasks.py").write_text(source)
        process = Process(programs, tmp_path, away or settings, list(arguments), lease)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()


@pytest.fixture
def deaths(start: Callable[..., Process]) -> Callable[..., int]:
    """Run a worker that is started again whenever it dies, until the condition holds; how often it died:
    `deaths(source_of_tasks, condition)`."""

    def count(source: str, condition: Callable[[], bool], **options: Any) -> int:
        died, worker = 0, start(source, **options)

        def over() -> bool:
            nonlocal died, worker
            if worker.popen.poll() is not None:
                died, worker = died + 1, start(source, **options)
            return condition()

        wait_for(over, timeout=150)
        return died

    return count
