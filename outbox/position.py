"""Where an event stands in the log: (tick, seq). It is also the id of its stream entry in Redis."""

from __future__ import annotations

from typing import NamedTuple


class Position(NamedTuple):
    """A place in the log. Positions compare as tuples; `str(position)` is the Redis stream id.

    >>> str(Position(1732147200000, 42))
    '1732147200000-42'
    >>> Position.parse(b"1732147200000-42") < Position(1732147200001, 0)
    True
    """

    tick: int
    seq: int

    def __str__(self) -> str:
        return f"{self.tick}-{self.seq}"

    @classmethod
    def parse(cls, text: str | bytes) -> Position:
        """Read a stream id such as `1732147200000-42`."""
        if isinstance(text, bytes):
            text = text.decode("ascii")
        tick, _, seq = text.partition("-")
        return cls(int(tick), int(seq or 0))


ORIGIN = Position(0, 0)
"""Before everything: where a feed begins that wants all that is retained."""

END = (1 << 63) - 1
"""The highest seq there can be: `Position(tick, END)` has all of the tick behind it."""
