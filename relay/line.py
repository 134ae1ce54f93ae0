"""The way of an append to Redis: packed commands over a connection, many on their way at once; or one by itself."""

from __future__ import annotations

from typing import Any, Protocol, cast

import redis

from outbox.redis import Cluster
from relay import scripts, wire
from relay.wire import Entries

SCRIPT = "append"


class Line(Protocol):
    """Sends appends and reads their answers in the order in which they were sent. Everything may raise a Redis error
    or `OSError`; whoever closes it then gets no answer to what is on its way."""

    number: int
    """Which opening this is: it rises with every one."""

    @property
    def is_open(self) -> bool:
        """Whether what is sent now is answered by `read`."""
        ...

    def open(self) -> None:
        """Connect, unless that is done."""

    def send(self, calls: list[tuple[str, bytes, bytes, Entries]]) -> None:
        """Send appends: key, expected last id, event name, entries."""

    def read(self, key: str) -> bytes:
        """The next answer for this key."""
        ...

    def call(self, key: str, expected: bytes, name: bytes, entries: Entries) -> bytes:
        """Send one append by itself and wait for its answer; only while nothing is on its way."""
        ...

    def close(self) -> None:
        """Leave the connection."""


class ServerLine:
    """One connection to one server."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._connection: Any = None
        self._sha = ""
        self.number = 0

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    def open(self) -> None:
        if self._connection is None:
            self._sha = self._client.script_load(scripts.lua(SCRIPT))
            self._connection = self._client.connection_pool.get_connection()
            # The pool gives the same object out again.
            self.number += 1

    def send(self, calls: list[tuple[str, bytes, bytes, Entries]]) -> None:
        self._connection.send_packed_command(
            [wire.evalsha(self._sha, key, (expected, name), entries) for key, expected, name, entries in calls]
        )

    def read(self, key: str) -> bytes:
        answer: bytes = self._connection.read_response()
        return answer

    def call(self, key: str, expected: bytes, name: bytes, entries: Entries) -> bytes:
        self.open()
        self.send([(key, expected, name, entries)])
        return self.read(key)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()
            self._client.connection_pool.release(self._connection)
            self._connection = None


class ClusterLine:
    """A connection to each node of a cluster that has one of the streams.

    Any error ends them all, and what was on its way is settled by calls, which redis-py takes to where a stream has
    moved: slots move rarely, and a stream that is in the middle of it would be refused here until it has arrived.
    """

    def __init__(self, client: Cluster) -> None:
        self._client = client
        self._lines: dict[redis.Redis, ServerLine] = {}
        self._of: dict[str, ServerLine] = {}
        self._stale = False
        self._open = False
        self.number = 0

    @property
    def is_open(self) -> bool:
        return self._open

    def open(self) -> None:
        if not self._open:
            if self._stale:
                self._client.locate()
            self._stale, self._open = True, True
            self.number += 1

    def send(self, calls: list[tuple[str, bytes, bytes, Entries]]) -> None:
        together: dict[ServerLine, list[tuple[str, bytes, bytes, Entries]]] = {}
        for call in calls:
            together.setdefault(self._line(call[0]), []).append(call)
        for line, its in together.items():
            line.send(its)

    def read(self, key: str) -> bytes:
        return self._of[key].read(key)

    def call(self, key: str, expected: bytes, name: bytes, entries: Entries) -> bytes:
        words = [scripts.lua(SCRIPT), 1, key, expected, name, *wire.values(entries)]
        return cast(bytes, self._client.execute_command("EVAL", *words))

    def close(self) -> None:
        for line in self._lines.values():
            line.close()
        self._lines.clear()
        self._of.clear()
        self._open = False

    def _line(self, key: str) -> ServerLine:
        line = self._of.get(key)
        if line is None:
            server = self._client.server_of(key)
            line = self._lines.setdefault(server, ServerLine(server))
            line.open()
            self._of[key] = line
        return line


def line_to(client: redis.Redis) -> Line:
    """The line that fits a client."""
    return ClusterLine(client) if isinstance(client, Cluster) else ServerLine(client)
