"""How many deliveries a handler may fetch: bounded in number for each handler, in bytes for the process. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from outbox.payload import MAX_BYTES

LARGEST = 2000
READ = 500
"""Entries per read at most."""
FIRST = 8
"""Entries that are asked of a stream that was empty; for batches, one of them."""
MEMORY = 128 * 1024 * 1024
"""Bytes of payload that the handlers of one process may hold together, about."""
WORTH = 4
"""Entries for which a read is worth while, where memory leaves no room for more."""


def next_window(window: int, *, capacity: int, seconds: float) -> int:
    """The next bound, after a full read was worked off in `seconds`: about half a second of work, within bounds.

    >>> next_window(100, capacity=100, seconds=0.02)
    200
    """
    if seconds < 0.15:
        window *= 2
    elif seconds > 0.6:
        window //= 2
    return min(max(window, capacity, 1), LARGEST)


def next_step(found: int, *, first: int = FIRST) -> int:
    """How many entries to ask of a stream that just gave `found`, at least `first`: more only where there were many,
    since what is asked for has to be counted as if each were as large as a payload may be.

    >>> next_step(8)
    32
    """
    return min(max(first, 4 * found), READ)


def affordable(held: int, total: int) -> int:
    """How many more events a handler may fetch that holds `held` of the `total` bytes that the process holds.

    Their sizes are known when they are here, so each counts as the largest that there may be. And a handler fetches
    only while more is free than it holds: alone up to half of all, so that whoever comes next finds room.

    >>> affordable(0, 0)
    512
    >>> affordable(32 * 1024 * 1024, 64 * 1024 * 1024)
    128
    """
    return max(0, MEMORY - total - held) // MAX_BYTES


def shares(asks: Iterable[tuple[int, int, bool]], total: int) -> list[int]:
    """How many events each may fetch, of those who ask in this order: (how many it wants, bytes it holds, whether it
    holds nothing). `total` bytes are held by all. Who holds nothing may fetch one, whatever the others hold.

    >>> shares([(500, 0, True), (500, 0, True), (8, 0, True)], 0)
    [500, 12, 1]
    """
    granted = []
    for wanted, held, idle in asks:
        count = affordable(held, total)
        if count < WORTH:
            count = int(idle)
        granted.append(min(wanted, count))
        total += granted[-1] * MAX_BYTES
    return granted


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
