"""Relays in a thread or in a process of their own, and the workers' part of the protocol played by hand."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import redis as redis_client
from forking import Programs
from waiting import wait_for

from outbox.names import catch_up_key, stream_key
from outbox.position import Position
from outbox.settings import Settings
from relay import Relay


class Box:
    """Writes events, plays workers, and looks at what the relay made of it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.sql = psycopg.connect(settings.libpq_url(), autocommit=True)
        self.redis = redis_client.Redis.from_url(settings.redis_url.get_secret_value())

    def one(self, statement: str, *parameters: Any) -> Any:
        """The only row of a query, or its only value; None without a row."""
        row = self.sql.execute(statement.encode(), parameters).fetchone()
        return None if row is None else row[0] if len(row) == 1 else row

    def add(self, name: str, count: int = 1, *, payload: str = "{}") -> list[int]:
        """Insert events in one transaction; their seqs."""
        rows = self.sql.execute(
            "INSERT INTO outbox.event (name, payload) SELECT %s, %s::json FROM generate_series(1, %s) RETURNING seq",
            [name, payload, count],
        ).fetchall()
        return [row[0] for row in rows]

    def add_ticked(self, name: str, count: int) -> list[int]:
        """The same, and wait for their tick: a handler that registers now is fed them, and not given them as new."""
        seqs = self.add(name, count)
        wait_for(
            lambda: self.one(
                "SELECT coalesce(bool_and(pg_visible_in_snapshot(xid, (SELECT snapshot FROM outbox.tick"
                " ORDER BY id DESC LIMIT 1))), false) FROM outbox.event"
            ),
            "the tick",
        )
        return seqs

    def register(self, *handlers: str, event: str) -> None:
        """What a worker does when it starts."""
        self.sql.execute(
            "INSERT INTO outbox.handler (name, event_name) SELECT unnest(%s::text[]), %s", [list(handlers), event]
        )
        self.sql.execute("NOTIFY outbox")

    def handler(self, name: str) -> Any:
        """Its row: attached, done_to, fed."""
        row = self.one(
            "SELECT attached, done_tick, done_seq, fed_tick, fed_seq FROM outbox.handler WHERE name = %s", name
        )
        attached, done_tick, done_seq, fed_tick, fed_seq = row
        return (
            attached,
            None if done_tick is None else Position(done_tick, done_seq),
            None if fed_tick is None else Position(fed_tick, fed_seq),
        )

    def attached(self, name: str) -> bool:
        return bool(self.handler(name)[0])

    def await_attached(self, *names: str) -> None:
        for name in names:
            wait_for(lambda name=name: self.attached(name), f"handler {name} being attached")  # type: ignore[misc]

    def subscribe(self, *handlers: str, event: str) -> None:
        """Handlers that are attached, with nothing to catch up on."""
        self.register(*handlers, event=event)
        self.await_attached(*handlers)

    def entries(self, name: str, handler: str | None = None) -> list[tuple[Position, dict[bytes, bytes]]]:
        """A main stream, or a handler's catch-up stream."""
        key = stream_key("outbox", name) if handler is None else catch_up_key("outbox", name, handler)
        return [(Position.parse(number), fields) for number, fields in self.redis.xrange(key)]

    def seqs(self, name: str, handler: str | None = None) -> list[int]:
        return [position.seq for position, _ in self.entries(name, handler)]

    def await_seqs(self, seqs: list[int], name: str, handler: str | None = None) -> None:
        """Wait until a stream holds as many entries, then they must be these."""
        key = stream_key("outbox", name) if handler is None else catch_up_key("outbox", name, handler)
        wait_for(lambda: self.redis.xlen(key) >= len(seqs), f"{len(seqs)} entries in {key}")
        assert self.seqs(name, handler) == seqs

    def read(self, name: str, handler: str, count: int = 10_000) -> list[tuple[bytes, bytes]]:
        """Read new entries for a handler as a worker does; pairs of stream key and entry id."""
        own, main = catch_up_key("outbox", name, handler), stream_key("outbox", name)
        found: list[tuple[bytes, bytes]] = []
        for key in [own, main] if self.attached(handler) else [own]:
            # Lost, or not made yet: it will be there again.
            with contextlib.suppress(redis_client.ResponseError):
                for _, entries in self.redis.xreadgroup(handler, "hand", {key: ">"}, count=count):  # type: ignore[union-attr]
                    found += [(key.encode(), number) for number, _ in entries]
        return found

    def finish(self, handler: str, entries: list[tuple[bytes, bytes]]) -> None:
        """Give entries the outcome "done", then acknowledge them."""
        self.sql.execute(
            "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
            " SELECT id, %s, created_at, 'done', 1 FROM outbox.event WHERE seq = ANY (%s::bigint[])"
            " ON CONFLICT DO NOTHING",
            [handler, [Position.parse(number).seq for _, number in entries]],
        )
        for key in {key for key, _ in entries}:
            self.redis.xack(key, handler, *(number for of, number in entries if of == key))

    def work(self, name: str, handler: str) -> list[int]:
        """Finish what there is for a handler now; its seqs."""
        entries = self.read(name, handler)
        if entries:
            self.finish(handler, entries)
        return [Position.parse(number).seq for _, number in entries]

    def work_until(self, name: str, handler: str, seqs: list[int]) -> list[int]:
        """Be the worker of a handler until it was given as many events as `seqs`; what it was given, in that order."""
        given: list[int] = []

        def enough() -> bool:
            given.extend(self.work(name, handler))
            return len(given) >= len(seqs)

        wait_for(enough, f"{len(seqs)} events at {handler}")
        return given

    def ticks(self) -> list[int]:
        return [row[0] for row in self.sql.execute("SELECT id FROM outbox.tick ORDER BY id")]

    def relays(self, where: str = "true") -> list[int]:
        """Backends of relays (not of their sweeps) of which this holds in pg_stat_activity."""
        rows = self.sql.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'outbox relay outbox'"
            f" AND datname = current_database() AND {where}".encode()
        )
        return [row[0] for row in rows]

    def leaders(self) -> list[int]:
        """Backends that hold the leader's lock."""
        rows = self.sql.execute(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        return [row[0] for row in rows]

    def await_leader(self) -> int:
        """The backend of a relay that leads."""
        return int(wait_for(self.leaders, "a leader")[0])

    def asleep_until(self) -> float:
        """The flag that asks writers to notify, relative to now, in seconds."""
        return float(
            self.one(
                "SELECT coalesce(pg_sequence_last_value('outbox.asleep'::regclass), 0)"
                " - extract(epoch FROM clock_timestamp())"
            )
        )

    def close(self) -> None:
        self.sql.close()
        self.redis.close()


class Process:
    """`outbox relay` as a process of its own, with its log."""

    def __init__(
        self, programs: Programs, log: Path, settings: Settings, *, level: str = "debug", failpoints: str = ""
    ) -> None:
        self.log = log
        environment = os.environ | {
            "OUTBOX_DATABASE_URL": settings.libpq_url(),
            "OUTBOX_RELAY_DATABASE_URL": settings.libpq_url(direct=True),
            "OUTBOX_REDIS_URL": settings.redis_url.get_secret_value(),
            "OUTBOX_SCHEMA": settings.schema_name,
            "OUTBOX_PREFIX": settings.prefix,
            "OUTBOX_FAILPOINTS": failpoints,
        }
        with log.open("ab") as out:
            self.popen = programs.start(
                ["-m", "console.main", "relay", "--log-level", level, "--log-format", "logfmt"],
                env=environment, stdout=out, stderr=out,
            )  # fmt: skip

    def output(self) -> str:
        return self.log.read_text()

    def await_line(self, text: str) -> None:
        """Wait until its log says so."""
        wait_for(lambda: text in self.output() or self.popen.poll() is not None, f"{text!r} in the log")
        assert text in self.output(), self.output()

    def pause(self) -> None:
        """SIGSTOP, and wait until it stands still."""
        self.popen.send_signal(signal.SIGSTOP)
        self.await_pause()

    def await_pause(self) -> None:
        """Wait until it stands still."""
        state = Path(f"/proc/{self.popen.pid}/stat")
        wait_for(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "the process standing still")

    def resume(self) -> None:
        """SIGCONT."""
        self.popen.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL; doing that twice is fine."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()

    def terminate(self) -> int:
        """SIGTERM; the exit status."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(timeout=60)


class Thread:
    """A relay in a thread of this process."""

    def __init__(self, settings: Settings) -> None:
        self.relay = Relay(settings)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.relay.run()
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self.relay.stop()
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()

    def __enter__(self) -> Thread:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self.error is not None:
            raise self.error


def with_credentials(url: str, user: str | None, password: str, **query: str) -> str:
    """A server's URL with a user and password in it."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user or ''}:{password}@{place}"))


@pytest.fixture
def box(settings: Settings) -> Iterator[Box]:
    made = Box(settings)
    yield made
    made.close()


@pytest.fixture(name="wait_for")
def _wait_for() -> Callable[..., Any]:
    return wait_for


@pytest.fixture
def run_relay(settings: Settings) -> Callable[..., Thread]:
    """A relay in a thread, as a context manager: `with run_relay(): ...`; it must end without an error."""

    def run(of: Settings = settings) -> Thread:
        return Thread(of)

    return run


@pytest.fixture
def relay(run_relay: Callable[..., Thread], box: Box) -> Iterator[Thread]:
    """A relay that leads."""
    with run_relay() as running:
        box.await_leader()
        yield running


@pytest.fixture
def start_relay(programs: Programs, tmp_path: Path, settings: Settings) -> Iterator[Callable[..., Process]]:
    """Start relay processes: `start_relay(settings)`."""
    started: list[Process] = []

    def start(of: Settings = settings, **options: Any) -> Process:
        process = Process(programs, tmp_path / f"relay-{len(started)}.log", of, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
