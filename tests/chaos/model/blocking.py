"""What a simulated relay has in place of psycopg and redis-py: calls that block until the world lets them be done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import redis

from outbox.position import Position
from relay import scripts, wire
from relay.wire import Entries
from tests.chaos.model.postgres import Session
from tests.chaos.model.relay_statements import statement
from tests.chaos.model.streams import Redis

if TYPE_CHECKING:
    from tests.chaos.model.relaying import Relaying


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
