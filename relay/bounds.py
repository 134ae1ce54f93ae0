"""What a stream holds, and where to cut it when that is too much. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from outbox.position import ORIGIN, Position


class Limit(NamedTuple):
    """How much a stream may hold."""

    entries: int
    size: int
    """Bytes, as the entries are sent; what they take in Redis is about the same."""


MAIN = Limit(entries=100_000, size=64 << 20)
CATCH_UP = Limit(entries=10_000, size=16 << 20)


class Mark(NamedTuple):
    """Some consecutive entries, up to and with the one at `last`."""

    last: Position
    entries: int
    size: int


@dataclass(slots=True)
class Contents:
    """What a stream holds, as consecutive marks.

    >>> held = Contents(Limit(entries=10, size=1000))
    >>> for seq in range(1, 5):
    ...     held.add(Position(1, seq), entries=3, size=30)
    >>> held.full, held.cut()
    (True, Position(tick=1, seq=3))
    >>> held.trimmed(Position(1, 3))
    >>> held.full, held.entries
    (False, 3)
    """

    limit: Limit
    entries: int = 0
    size: int = 0
    _marks: deque[Mark] = field(default_factory=deque)

    @property
    def full(self) -> bool:
        """Whether it holds as much as it may."""
        return self.entries >= self.limit.entries or self.size >= self.limit.size

    def add(self, last: Position, *, entries: int, size: int) -> None:
        """Entries were appended."""
        self._marks.append(Mark(last, entries, size))
        self.entries += entries
        self.size += size

    def trimmed(self, upto: Position) -> None:
        """What is not above `upto` was dropped."""
        while self._marks and self._marks[0].last <= upto:
            mark = self._marks.popleft()
            self.entries -= mark.entries
            self.size -= mark.size

    def cut(self) -> Position:
        """The position up to which to trim so that at most half of what is allowed remains."""
        entries, size, upto = self.entries, self.size, ORIGIN
        for mark in self._marks:
            if entries <= self.limit.entries // 2 and size <= self.limit.size // 2:
                break
            entries -= mark.entries
            size -= mark.size
            upto = mark.last
        return upto
