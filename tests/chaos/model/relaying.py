"""A relay as a simulated process: the real `relay.service.Relay`, whose calls to the servers are steps of the schedule.

The relay is written with calls that block. Each of its threads is a greenlet here, which stops at a call and goes on
when the world lets it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import greenlet
import psycopg
import redis

from outbox.errors import LeadershipLostError
from outbox.position import Position
from outbox.settings import Settings
from relay import scripts, wire
from relay.service import Relay
from relay.sweep import Sweep
from relay.wire import Entries
from tests.chaos.model.postgres import Session
from tests.chaos.model.relay_statements import statement
from tests.chaos.model.streams import Redis
from tests.chaos.model.world import Call, Process, Server, World

SETTINGS = Settings(database_url="postgresql://model/model", redis_url="redis://model", _env_file=None)


class Relaying(Process):
    """A relay and its sweep."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.dead = False
        self._waiting: list[Call] = []
        self._threads: list[Thread] = []
        self._sessions: list[Session] = []
        self._lines: list[Line] = []
        self._relay = Relay(SETTINGS)
        self.spawn(self._run)

    @property
    def waiting(self) -> list[Call]:
        return self._waiting

    def wake(self) -> None:
        """Nothing happens to it by itself."""

    def kill(self, *, sent: bool) -> None:
        self.dead = True
        for line in self._lines:
            line.drop(sent=sent)
        for session in self._sessions:
            self.world.postgres.end_session(session)
        for thread in self._threads:
            thread.throw(greenlet.GreenletExit)
        self._waiting.clear()

    def spawn(self, body: Callable[[], None]) -> None:
        """Begin a thread."""
        thread = Thread(body, self)
        self._threads.append(thread)
        self._waiting.append(Call("nobody", lambda: None, lambda *_: thread.switch()))

    def call(self, server: Server, perform: Callable[[], Any], cut: Callable[[], None], at: float = 0.0) -> Any:
        """Stand still until the world has done this."""
        if self.dead:
            raise greenlet.GreenletExit
        thread = greenlet.getcurrent()
        self._waiting.append(Call(server, perform, lambda *outcome: thread.switch(*outcome), cut, at))
        result, error = thread.parent.switch()
        if error is not None:
            raise error
        return result

    def rest(self, seconds: float) -> None:
        self.call("nobody", lambda: None, lambda: None, self.world.time + seconds)

    def _run(self) -> None:
        # As `Relay.run`, without its delays between two connections.
        while True:
            try:
                self._relay._serve()
            except (psycopg.OperationalError, LeadershipLostError):
                self.rest(0.1)

    # What is put in place of what talks to servers

    def connect(self) -> Connection:
        return Connection(self)


class Thread(greenlet.greenlet):  # type: ignore[misc]
    """One of a relay's threads. Whoever began it, its calls are steps of the world."""

    def __init__(self, body: Callable[[], None], process: Relaying) -> None:
        began = greenlet.getcurrent()
        super().__init__(body, began.parent if isinstance(began, Thread) else began)
        self.process = process


def here() -> Relaying:
    """The process whose code runs."""
    process: Relaying = greenlet.getcurrent().process
    return process


class Result:
    """Rows, as psycopg gives them, and as libpq does."""

    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        self._rows = rows
        self.rowcount = self.ntuples = len(rows)

    def fetchone(self) -> tuple[Any, ...] | None:
        return self._rows[0] if self._rows else None

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self._rows

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self._rows)

    def get_value(self, row: int, column: int) -> bytes | None:
        value: bytes | None = self._rows[row][column]
        return value


class Connection:
    """Stands for psycopg's."""

    def __init__(self, process: Relaying) -> None:
        self._process = process
        self._world = process.world
        self._atomic = False
        self.cut = False
        self.info = SimpleNamespace(backend_pid=1)
        self.cursors: dict[str, list[tuple[Any, ...]]] = {}
        self.session: Session = process.call("postgres", self._open, lambda: None)
        process._sessions.append(self.session)

    def _open(self) -> Session:
        return Session(self._world.postgres, self._process.name)

    @property
    def broken(self) -> bool:
        return self.closed

    @property
    def closed(self) -> bool:
        return self.cut or self.session.broken or self._process.dead

    def close(self) -> None:
        if not self.cut:
            self._world.postgres.end_session(self.session)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_notify_handler(self, handler: object) -> None:
        """Nobody notifies: polls find everything."""

    def cursor(self) -> Cursor:
        return Cursor(self)

    def execute(self, text: Any, parameters: Any = None) -> Result:
        return Result(self.rows(text, parameters))

    def rows(self, text: Any, parameters: Any) -> list[tuple[Any, ...]]:
        words = text.decode() if isinstance(text, bytes) else text if isinstance(text, str) else text.as_string()
        perform = self._command(words, parameters)
        found: list[tuple[Any, ...]] = perform() if self._atomic else self._ask(perform)
        return found

    def _ask(self, perform: Callable[[], Any]) -> Any:
        if self.cut:
            raise psycopg.OperationalError("the connection is closed")

        def checked() -> Any:
            self.session.check()
            return perform()

        return self._process.call("postgres", checked, self._lose)

    def _lose(self) -> None:
        self.cut = True

    def _command(self, words: str, parameters: Any) -> Callable[[], Any]:
        kind, *rest = words.split(maxsplit=5)
        if kind == "FETCH":
            return lambda: self._fetch(rest[3], int(rest[1]))
        if kind == "CLOSE":
            return lambda: self._close(rest[0])
        if kind == "SELECT" and "system_identifier, current_database" in words:
            return lambda: [("1", "model")]
        does = _known(words)
        if kind == "DECLARE":
            return lambda: self._declare(rest[0], does(self._world.postgres, self.session, parameters))
        return lambda: does(self._world.postgres, self.session, parameters)

    def _declare(self, name: str, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        self.cursors[name] = rows
        return []

    def _close(self, name: str) -> list[tuple[Any, ...]]:
        del self.cursors[name]
        return []

    def _fetch(self, name: str, count: int) -> list[tuple[Any, ...]]:
        rows = self.cursors[name]
        found, self.cursors[name] = rows[:count], rows[count:]
        return found

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Nothing comes between its statements: each may fail at its BEGIN, or at the reply to its COMMIT."""
        self._ask(lambda: None)
        self._atomic = True
        try:
            yield
        finally:
            self._atomic = False
        self._ask(lambda: None)


@cache
def _known(words: str) -> Any:
    return statement(words)


class Cursor:
    """Stands for psycopg's."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.pgresult: Result | None = None
        self.rowcount = 0

    def execute(self, text: Any, parameters: Any = None, *, prepare: bool = False) -> None:
        self.pgresult = Result(self._connection.rows(text, parameters))
        self.rowcount = self.pgresult.rowcount

    def close(self) -> None:
        """Nothing is held."""


class Client:
    """Stands for redis-py's."""

    def __init__(self, process: Relaying) -> None:
        self.process = process

    def _ask(self, perform: Callable[[Redis], Any]) -> Any:
        return self.process.call("redis", lambda: perform(self.process.world.redis), lambda: None)

    def eval(self, script: str, _: int, key: str, *arguments: str) -> Any:
        if script == scripts.lua("progress"):
            return self._ask(lambda server: server.progress(key, arguments[0]))
        assert script == scripts.lua("detach")
        name, cut, away = arguments
        return self._ask(lambda server: server.detach(key, name, cut.encode(), away.encode()))

    def set(self, key: str, value: str, nx: bool = False, px: int = 0) -> bool:
        return bool(self._ask(lambda server: server.set(key, value.encode(), new=nx)))

    def get(self, key: str) -> Any:
        return self._ask(lambda server: server.get(key))

    def delete(self, key: str) -> Any:
        return self._ask(lambda server: server.delete(key))

    def memory_usage(self, key: str) -> Any:
        return self._ask(lambda server: 100 * len(server.streams[key].entries) if key in server.streams else None)

    def xtrim(self, key: str, *, minid: str, approximate: bool) -> Any:
        return self._ask(lambda server: server.trim(key, Position.parse(minid)))

    def xgroup_create(self, key: str, name: str, *, id: str, mkstream: bool) -> None:
        self._ask(lambda server: server.create_group(key, name, id))

    def xgroup_setid(self, key: str, name: str, *, id: str) -> None:
        self._ask(lambda server: server.set_group(key, name, id))

    def close(self) -> None:
        """Nothing is held."""


class Line:
    """Stands for `relay.line.ServerLine`: what is sent arrives, in order, some time before its answer is read."""

    def __init__(self, client: Client) -> None:
        self._process = client.process
        self._process._lines.append(self)
        self._sent: list[tuple[str, bytes, bytes, Entries]] = []
        self._replies: list[Any] = []
        self.is_open = False
        self.number = 0

    def open(self) -> None:
        if not self.is_open:
            self._process.call("redis", lambda: None, lambda: None)
            self.is_open = True
            self.number += 1

    def send(self, calls: Sequence[tuple[str, bytes, bytes, Entries]]) -> None:
        self._sent += calls

    def read(self, key: str) -> bytes:
        if not self._replies:
            # What arrives late, or with its reply lost, arrives as a whole.
            self._process.call("redis", self._arrive, self.close)
        reply = self._replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        answer: bytes = reply
        return answer

    def call(self, key: str, expected: bytes, name: bytes, entries: Entries) -> bytes:
        self.open()
        self.send([(key, expected, name, entries)])
        return self.read(key)

    def close(self) -> None:
        self.is_open = False
        self._sent.clear()
        self._replies.clear()

    def drop(self, *, sent: bool) -> None:
        """Its process is dead; what it `sent` may arrive all the same."""
        if sent and "redis" not in self._process.world.away:
            self._arrive()
        self.close()

    def _arrive(self) -> None:
        sent, self._sent = self._sent, []
        for key, expected, name, entries in sent:
            values = wire.values(entries)
            rows = [_entry(name, values[i : i + wire.ARGUMENTS]) for i in range(0, len(values), wire.ARGUMENTS)]
            try:
                self._replies.append(self._process.world.redis.append(key, expected, rows))
            except redis.RedisError as error:
                self._replies.append(error)


def _entry(name: bytes, values: list[bytes]) -> tuple[bytes, list[bytes]]:
    at, event_id, key, payload, headers, created = values
    return at, [b"id", event_id, b"name", name, b"key", key, b"payload", payload, b"headers", headers, b"at", created]


class Sweeping(Sweep):
    """The sweep as a greenlet of its process."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._stop = Resting(here())  # type: ignore[assignment]

    def start(self) -> None:
        here().spawn(self.serve)

    def stop(self) -> None:
        self._stop.set()


class Resting:
    """Stands for `threading.Event` in one of the greenlets."""

    def __init__(self, process: Relaying) -> None:
        self._process = process
        self._set = False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set

    def wait(self, seconds: float) -> bool:
        if not self._set:
            self._process.rest(seconds)
        return self._set


class Doorbell:
    """Stands for the relay's: waiting is resting."""

    wakeups: Mapping[str, int] = {}

    def ring(self) -> None:
        """Rests end with the next look anyway."""

    notified = ring

    def wait(self, seconds: float, connection: Any = None) -> bool:
        here().rest(seconds)
        return False

    def close(self) -> None:
        """Nothing is held."""


class Sleep:
    """Stands for the relay's sleep: nobody notifies, so it polls."""

    asleep = False

    def __init__(self, connection: Any, schema: str) -> None:
        self.asleep = False

    def fall_asleep(self) -> None:
        self.asleep = True

    def next_poll(self) -> float:
        return here().world.time + 0.5

    def wake(self) -> None:
        self.asleep = False

    def forget_ended(self) -> None:
        """Nobody is waited for."""


class Upkeep:
    """Stands for the relay's: no partition becomes old here."""

    def __init__(self, *arguments: Any, **options: Any) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


class Clock:
    """Stands for the module `time`."""

    @staticmethod
    def monotonic() -> float:
        return here().world.time


def connect(url: str, schema: str, *, role: str = "relay") -> Connection:
    """Stands for `relay.lead.connect`."""
    return here().connect()


def replacements() -> Mapping[str, Any]:
    """What to set while relays are simulated, by its dotted name."""
    return {
        "relay.lead.connect": connect,
        "relay.service.connect": lambda url, timeout: Client(here()),
        "relay.service.Doorbell": Doorbell,
        "relay.service.Sleep": Sleep,
        "relay.service.Sweep": Sweeping,
        "relay.service.Upkeep": Upkeep,
        "relay.service.time": Clock,
        "relay.service.rebase.check": lambda connection, schema: None,
        "relay.service.eviction.warn": lambda client: None,
        "relay.append.line_to": Line,
        "relay.feed.time": Clock,
        "relay.catch_up.time": Clock,
    }
