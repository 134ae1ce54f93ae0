"""When to poll and when to listen. Pure: time is an argument.

Under load the relay polls, because a NOTIFY in every transaction would slow all writers down; when it is calm it
listens, because that is quicker and costs nothing. Two thresholds keep it from flipping.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

BUSY_ABOVE = 300.0
"""Events per second from which it pays to poll."""

CALM_BELOW = 100.0
"""Events per second under which it pays to listen."""

POLL_EVERY = 0.005
"""Seconds between polls under load: the most that polling adds to an event's latency."""

SAFETY_POLL = 3.0
"""Seconds between polls while listening, for what cannot notify; also renews the flag and keeps the session alive."""

ASLEEP_FOR = 12.0
"""Seconds for which the flag says "asleep": a relay that died asleep costs writers their NOTIFY no longer than this."""

_WINDOW = 1.0


@dataclass(frozen=True)
class Pace:
    """The rate of events, averaged over about a second, and what the relay does about it."""

    listening: bool = False
    rate: float = BUSY_ABOVE
    at: float = 0.0


def observe(pace: Pace, now: float, events: int) -> Pace:
    """The pace after `events` were found at time `now` (seconds)."""
    decay = math.exp(-max(0.0, now - pace.at) / _WINDOW)
    rate = pace.rate * decay + events / _WINDOW
    listening = rate < (BUSY_ABOVE if pace.listening else CALM_BELOW)
    return replace(pace, rate=rate, at=now, listening=listening)


def awaited_poll(since: float) -> float:
    """Seconds until the next poll for transactions that read "awake" before the relay fell asleep `since` seconds ago.

    They may stay open for hours: the interval grows with their age, and so does what they wait for, by a tenth.
    """
    return min(0.5, max(POLL_EVERY, since / 10))
