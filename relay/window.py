"""How much of the log one read covers. Pure."""

from __future__ import annotations

from outbox.position import END, Position
from relay.tick import Tick

TRANSACTIONS = 50_000
"""Transactions that one read covers, unless a single tick has more."""

FEWEST, MOST = 4, 1000
"""Ticks that one read of a feed covers at least and at most. Under load the main feed takes one between two reads: a
feed that took no more would never catch up."""

LONG = 0.01
"""Seconds until the first rows of a read beyond which the next covers less: the main feed waits for them."""


def next_most(most: int, seconds: float) -> int:
    """How many ticks a feed's next read may cover, after `most` and so long until its first rows.

    >>> next_most(64, 0.5), next_most(64, 0.001), next_most(64, 0.007)
    (32, 128, 64)
    """
    if seconds > LONG:
        return max(FEWEST, most // 2)
    return min(MOST, most * 2) if seconds < LONG / 2 else most


def window(ticks: list[Tick], start: Position) -> list[Tick]:
    """Of consecutive ticks those that a read from `start` covers: at least one, if one has anything behind `start`."""
    ahead = [tick for tick in ticks if Position(tick.id, END) > start]
    if not ahead:
        return []
    before = ahead[0].since.xmax
    return [ahead[0], *(tick for tick in ahead[1:] if tick.snapshot.xmax - before <= TRANSACTIONS)]
