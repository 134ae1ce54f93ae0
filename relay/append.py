"""Compare and append: puts entries on streams so that nothing is published twice or over a hole.

Each call carries the id that this relay believes to be the stream's last. Redis compares, appends or refuses, and
answers with the last id as it is then. That answer tells all there is to know, also after a lost reply or when another
relay was here. So calls may follow each other without waiting: each believes in its predecessor's last entry, and if
that one is refused, so is the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis
import structlog

from outbox.position import Position
from relay import scripts, wire
from relay.patience import Patience
from relay.wire import Entries

log = structlog.get_logger()

UNSENT = 0
"""In place of a connection's number: over none."""

NEW = b"0-0"
"""The last id of a stream that does not exist."""


@dataclass(slots=True)
class Append:
    """Entries of one event name for one stream."""

    key: str
    name: bytes
    entries: Entries


@dataclass(frozen=True, slots=True)
class Lost:
    """The stream ends before the entry that it ended with once: Redis lost data. Nothing was appended."""

    key: str
    expected: Position
    actual: Position


class Appender:
    """Appends to streams over one connection and knows where each ends.

    `check_lead()` is called when somebody else was found to have appended; it raises when this relay no longer leads.
    """

    def __init__(self, client: redis.Redis, patience: Patience, *, check_lead: Callable[[], None]) -> None:
        self.client = client
        self.last: dict[str, bytes] = {}
        """The last id of each stream, as far as Redis has confirmed it."""
        self._patience = patience
        self._check_lead = check_lead
        self._connection: Any = None
        self._sha = ""
        self._connected = 0
        """Numbers the connections: the pool gives the same object out again."""
        self._sent: deque[tuple[int, list[Append]]] = deque()
        self._ends: dict[str, bytes] = {}
        """The last id of each stream when all that is sent is appended."""

    @property
    def in_flight(self) -> int:
        """How many submissions wait to be settled."""
        return len(self._sent)

    def submit(self, appends: list[Append]) -> None:
        """Send appends without waiting for the answers; `settle` reads them. A failure to send shows there too."""
        sent = [append for append in map(self._unpublished, appends) if append.entries]
        expected = [self._ends[append.key] for append in sent]
        self._ends |= {append.key: append.entries.final for append in sent}
        over = UNSENT
        try:
            if not self._sent:
                self._connect()
            # Behind one that will be sent again by itself it would only be refused.
            if self._connection is not None and all(before == self._connected for before, _ in self._sent):
                if sent:
                    self._connection.send_packed_command(list(map(self._command, sent, expected)))
                over = self._connected
        except (redis.RedisError, OSError) as error:
            self._drop(error)
        self._sent.append((over, sent))

    def settle(self) -> list[Lost]:
        """Wait until the oldest submission is appended, however long Redis is away; return what could not be."""
        over, sent = self._sent.popleft()
        answers = [self._answer(over) for _ in sent]
        losses = [loss for pair in zip(sent, answers, strict=True) if (loss := self._conclude(*pair))]
        for loss in losses:
            self._give_up(loss.key)
        if not self._sent:
            self._ends.clear()
        return losses

    def expect(self, key: str, last: Position) -> None:
        """From here on the stream is believed to end at `last`."""
        self.last[key] = self._ends[key] = str(last).encode()

    def close(self) -> None:
        """Leave the connection. What was sent over it and not answered is sent again when it is settled."""
        if self._connection is not None:
            self._connection.disconnect()
            self.client.connection_pool.release(self._connection)
            self._connection = None

    def _unpublished(self, append: Append) -> Append:
        """After taking over, Redis may be ahead of the bookmark: what it has already is left out."""
        last = self.last.setdefault(append.key, NEW)
        return self._behind(append, self._ends.setdefault(append.key, last))

    @staticmethod
    def _behind(append: Append, last: bytes) -> Append:
        """What of an append is not in a stream that ends at `last`."""
        return Append(append.key, append.name, append.entries.after(Position.parse(last)))

    def _give_up(self, key: str) -> None:
        """What is on its way to a stream that lost data must not get there over the hole: it was refused already."""
        for _, sent in self._sent:
            sent[:] = [append for append in sent if append.key != key]

    def _command(self, append: Append, expected: bytes) -> bytes:
        return wire.evalsha(self._sha, append.key, (expected, append.name), append.entries)

    def _answer(self, over: int) -> bytes | None:
        """The next reply on the connection that was used; None when there is none to be had."""
        if self._connection is None or over != self._connected:
            return None
        try:
            answer: bytes = self._connection.read_response()
            return answer
        except (redis.RedisError, OSError) as error:
            self._drop(error)
        return None

    def _conclude(self, append: Append, answer: bytes | None) -> Lost | None:
        """Make sure that an append is done, given its answer."""
        if answer == append.entries.final:
            self.last[append.key] = answer
            return None
        # Whatever is behind it was refused too. Its answers are not read: it is settled by calls of its own.
        self.close()
        # The last one's answer may have told that this one is there too.
        append = self._behind(append, self.last[append.key])
        while append.entries:
            answer = self._patience.insist(lambda append=append: self._call(append))  # type: ignore[misc]
            expected, actual = Position.parse(self.last[append.key]), Position.parse(answer)
            if actual < expected:
                return Lost(append.key, expected, actual)
            if answer != append.entries.final:
                # A lost reply, or another leader was here.
                self._check_lead()
            self.last[append.key] = answer
            append = self._behind(append, answer)
        return None

    def _connect(self) -> None:
        if self._connection is None:
            self._sha = self.client.script_load(scripts.lua("append"))
            self._connection = self.client.connection_pool.get_connection()
            self._connected += 1

    def _drop(self, error: Exception) -> None:
        log.warning("redis.away", error=f"{type(error).__name__}: {error}")
        self.close()

    def _call(self, append: Append) -> bytes:
        """One append by itself, from what Redis has confirmed."""
        try:
            self._connect()
            self._connection.send_packed_command([self._command(append, self.last[append.key])])
            answer: bytes = self._connection.read_response()
            return answer
        except (redis.RedisError, OSError):
            self.close()
            raise
