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
    window = min(max(window, capacity, 1), LARGEST)
    return within_memory(window, capacity=min(capacity, LARGEST), average_bytes=average_bytes)


def within_memory(window: int, *, capacity: int, average_bytes: float) -> int:
    """`window`, or fewer where payloads are large; never fewer than run at once.

    >>> within_memory(2000, capacity=10, average_bytes=256 * 1024)
    64
    """
    return max(capacity, min(window, int(MEMORY / max(1.0, average_bytes))))


def next_average(average: float, latest: float) -> float:
    """The average size of payloads after a read whose payloads had `latest` bytes: it rises at once, and falls slowly.

    >>> next_average(1000.0, 200.0)
    840.0
    """
    return max(latest, 0.8 * average + 0.2 * latest)
