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

import redis
import structlog

from outbox.position import Position
from relay.line import line_to
from relay.patience import Patience
from relay.wire import Entries

log = structlog.get_logger()

UNSENT = 0
"""In place of the number of a line's opening: over none."""

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
    """Appends to streams over one line and knows where each ends.

    `check_lead()` is called when somebody else was found to have appended; it raises when this relay no longer leads.
    """

    def __init__(self, client: redis.Redis, patience: Patience, *, check_lead: Callable[[], None]) -> None:
        self.last: dict[str, bytes] = {}
        """The last id of each stream, as far as Redis has confirmed it."""
        self._patience = patience
        self._check_lead = check_lead
        self._line = line_to(client)
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
                self._line.open()
            # Behind one that will be sent again by itself it would only be refused.
            if self._line.is_open and all(before == self._line.number for before, _ in self._sent):
                if sent:
                    self._line.send(list(map(_facts, sent, expected)))
                over = self._line.number
        except (redis.RedisError, OSError) as error:
            self._drop(error)
        self._sent.append((over, sent))

    def settle(self) -> list[Lost]:
        """Wait until the oldest submission is appended, however long Redis is away; return what could not be."""
        over, sent = self._sent.popleft()
        answers = [self._answer(over, append.key) for append in sent]
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
        self._line.close()

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

    def _answer(self, over: int, key: str) -> bytes | None:
        """The next reply for a key, if that submission was sent as the line is open now; None when there is none."""
        if not self._line.is_open or over != self._line.number:
            return None
        try:
            return self._line.read(key)
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

    def _drop(self, error: Exception) -> None:
        log.warning("redis.away", error=f"{type(error).__name__}: {error}")
        self.close()

    def _call(self, append: Append) -> bytes:
        """One append by itself, from what Redis has confirmed."""
        try:
            return self._line.call(*_facts(append, self.last[append.key]))
        except (redis.RedisError, OSError):
            self.close()
            raise


def _facts(append: Append, expected: bytes) -> tuple[str, bytes, bytes, Entries]:
    return append.key, expected, append.name, append.entries
