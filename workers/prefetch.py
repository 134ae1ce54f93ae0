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


def claimable(*, running: int, queued: int, capacity: int, window: int) -> int:
    """How many due retries may be claimed now; 0 until that is worth a query.

    Some are always let in, beside first attempts. A handler that works off its window quickly holds up to three times
    what it runs ahead: not more, because the death of a worker is a crash of each retry that it holds.

    >>> claimable(running=0, queued=0, capacity=100, window=100)
    100
    >>> claimable(running=100, queued=0, capacity=100, window=2000)
    326
    """
    ahead = max(0, min(window, 4 * capacity) - capacity)
    free = max(capacity - running, min(capacity, 1 + capacity // 4)) + ahead - queued
    return free if free >= max(1, (capacity + ahead) // 8) else 0
