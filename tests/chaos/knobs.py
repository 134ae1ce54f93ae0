"""Knobs: limits of relay and workers that a seed may turn down, so that seconds reach what else takes days."""

from __future__ import annotations

import importlib
from typing import Any

from relay.bounds import Limit

KNOBS: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "main stream": ("relay.bounds", "MAIN", (Limit(40, 1 << 20), Limit(300, 64 << 10))),
    "catch-up stream": ("relay.bounds", "CATCH_UP", (Limit(10, 1 << 20), Limit(100, 32 << 10))),
    "small batch": ("relay.tick", "SMALL", (1, 8)),
    "part bytes": ("relay.tick", "PART_BYTES", (200, 4000)),
    "part events": ("relay.tick", "PART_EVENTS", (1,)),
    "first rows": ("relay.tick", "FIRST_ROWS", (1, 4)),
    "feed piece": ("relay.catch_up", "PIECE", (3, 20)),
    "in flight": ("relay.feed", "IN_FLIGHT", (1000,)),
    "bookmark": ("relay.feed", "BOOKMARK_EVERY", (0.0,)),
    "sweep": ("relay.sweep", "EVERY", (0.1, 0.3)),
    "sweep ticks": ("relay.sweep", "MOST_TICKS", (2, 7)),
    "read transactions": ("relay.window", "TRANSACTIONS", (1, 20)),
    "poll above": ("relay.pacing", "BUSY_ABOVE", (5.0,)),
    "upkeep": ("relay.upkeep", "EVERY", (0.5, 3.0)),
    "record batch": ("workers.delivery", "BATCH", (1, 5)),
    "lease chunk": ("workers.lease", "CHUNK", (3,)),
    "read entries": ("workers.prefetch", "READ", (2, 10)),
}
"""Module, name and the values that it may get instead of its own."""


def turn(chosen: dict[str, int]) -> None:
    """Turn knobs in this process, each to the value of that number."""
    for name, number in chosen.items():
        module, constant, values = KNOBS[name]
        setattr(importlib.import_module(module), constant, values[number])
