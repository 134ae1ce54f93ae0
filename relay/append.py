"""Compare and append: puts entries on streams so that nothing is published twice or over a hole.

Each call carries the id that this relay believes to be the stream's last. Redis compares, appends or refuses, and
answers with the last id as it is then. That answer tells all there is to know, also after a lost reply or when another
relay was here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis
import structlog

from outbox.position import Position
from relay import scripts
from relay.patience import Patience

log = structlog.get_logger()

ENTRY = 6
"""Arguments per entry: stream id, outbox id, key, payload, headers, at."""

NEW = b"0-0"
"""The last id of a stream that does not exist."""


@dataclass(slots=True)
class Append:
    """Entries for one stream: `arguments` holds six per entry, in order of their ids."""

    key: str
    name: bytes
    arguments: list[bytes]

    @property
    def final(self) -> bytes:
        return self.arguments[-ENTRY]

    def after(self, position: Position) -> Append:
        """What remains of it behind a position."""
        ids = self.arguments[::ENTRY]
        # Ids rise, and nearly always all or nothing remains.
        if Position.parse(ids[0]) > position:
            return self
        done = sum(Position.parse(number) <= position for number in ids)
        return Append(self.key, self.name, self.arguments[done * ENTRY :])


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
        self._patience = patience
        self._check_lead = check_lead
        self._connection: Any = None
        self._sha = ""
        self._sent: list[Append] = []

    def submit(self, appends: list[Append]) -> None:
        """Send appends without waiting for the answers; `settle` reads them. A failure to send shows there too."""
        assert not self._sent, "settle first"
        self._sent = [self._unpublished(append) for append in appends]
        try:
            self._connect()
            packed: list[Any] = []
            for append in self._sent:
                if append.arguments:
                    packed += self._connection.pack_command(*self._command(append))
            if packed:
                self._connection.send_packed_command(packed)
        except (redis.RedisError, OSError) as error:
            self._drop(error)

    def settle(self) -> list[Lost]:
        """Wait until all that was submitted is appended, however long Redis is away, and return what could not be."""
        sent, self._sent = [append for append in self._sent if append.arguments], []
        answers = [self._answer(append) for append in sent]
        return [loss for append, answer in zip(sent, answers, strict=True) if (loss := self._conclude(append, answer))]

    def expect(self, key: str, last: Position) -> None:
        """From here on the stream is believed to end at `last`."""
        self.last[key] = str(last).encode()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()
            self.client.connection_pool.release(self._connection)
            self._connection = None

    def _unpublished(self, append: Append) -> Append:
        """After taking over, Redis may be ahead of the bookmark: what it has already is left out."""
        return append.after(Position.parse(self.last.setdefault(append.key, NEW)))

    def _command(self, append: Append) -> tuple[Any, ...]:
        return ("EVALSHA", self._sha, 1, append.key, self.last[append.key], append.name, *append.arguments)

    def _answer(self, append: Append) -> bytes | None:
        """The reply to what was sent; None when there is none to be had."""
        if self._connection is None:
            return None
        try:
            answer: bytes = self._connection.read_response()
            return answer
        except redis.exceptions.ResponseError as error:
            log.warning("redis.refused", stream=append.key, error=str(error))
        except (redis.RedisError, OSError) as error:
            self._drop(error)
        return None

    def _conclude(self, append: Append, answer: bytes | None) -> Lost | None:
        while True:
            expected = self.last[append.key]
            if answer is None:
                rest = append
                answer = self._patience.insist(lambda rest=rest: self._call_append(rest))  # type: ignore[misc]
            if answer == append.final:
                self.last[append.key] = answer
                return None
            actual = Position.parse(answer)
            if actual < Position.parse(expected):
                return Lost(append.key, Position.parse(expected), actual)
            # A lost reply, or another leader was here.
            self._check_lead()
            self.last[append.key] = answer
            append = append.after(actual)
            if not append.arguments:
                return None
            answer = None

    def _connect(self) -> None:
        if self._connection is None:
            self._sha = self.client.script_load(scripts.lua("append"))
            self._connection = self.client.connection_pool.get_connection()

    def _drop(self, error: Exception) -> None:
        log.warning("redis.away", error=f"{type(error).__name__}: {error}")
        self.close()

    def _call_append(self, append: Append) -> bytes:
        try:
            self._connect()
            self._connection.send_command(*self._command(append))
            answer: bytes = self._connection.read_response()
            return answer
        except redis.exceptions.NoScriptError:
            self.close()
            raise
        except (redis.RedisError, OSError):
            self.close()
            raise
