"""How much of the log one read covers. Pure."""

from __future__ import annotations

from outbox.position import END, Position
from relay.tick import Tick

TRANSACTIONS = 50_000
"""Transactions that one read covers, unless a single tick has more."""


def window(ticks: list[Tick], start: Position) -> list[Tick]:
    """Of consecutive ticks those that a read from `start` covers: at least one, if one has anything behind `start`."""
    ahead = [tick for tick in ticks if Position(tick.id, END) > start]
    if not ahead:
        return []
    before = ahead[0].since.xmax
    return [ahead[0], *(tick for tick in ahead[1:] if tick.snapshot.xmax - before <= TRANSACTIONS)]
