"""How many deliveries a handler may hold at once. Pure."""

from __future__ import annotations

LARGEST = 2000
READ = 500
"""Entries per read at most."""
MEMORY = 16 * 1024 * 1024
"""Bytes of payload that one handler may hold, about."""


def next_window(window: int, *, capacity: int, seconds: float, average_bytes: float) -> int:
    """The next bound, after a full read was worked off in `seconds`: about half a second of work, within bounds.

    >>> next_window(100, capacity=100, seconds=0.02, average_bytes=200)
    200
    """
    if seconds < 0.15:
        window *= 2
    elif seconds > 0.6:
        window //= 2
    by_memory = int(MEMORY / max(1.0, average_bytes))
    return max(1, min(max(window, capacity), LARGEST, max(by_memory, capacity)))
