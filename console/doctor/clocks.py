"""Whether the servers' clocks and the one here show the same time."""

from __future__ import annotations

import time

from console.doctor.finding import Verdict, fine, seconds, warning
from console.doctor.installation import Installation
from outbox.redis import Cluster

SKEW = 2.0
"""Seconds by which clocks may differ."""


def clocks(installation: Installation) -> Verdict:
    """Compare them, as exactly as the way there allows."""
    with installation.reading() as connection:
        connection.execute("SELECT 1")
        before = time.time()
        row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
        after = time.time()
    assert row is not None
    offsets = {"PostgreSQL": offset(before, row[0], after)}
    client = installation.redis()
    if not isinstance(client, Cluster):
        before = time.time()
        server = client.info("server")
        after = time.time()
        if "server_time_usec" in server:
            offsets["Redis"] = offset(before, int(server["server_time_usec"]) / 1e6, after)
    return skewed(offsets)


def offset(before: float, shown: float, after: float) -> float:
    """By how many seconds at least a clock that showed `shown`, between `before` and `after` here, is ahead.

    >>> offset(10.0, 10.5, 11.0), offset(10.0, 5.0, 11.0)
    (0.0, -5.0)
    """
    return shown - min(max(shown, before), after)


def skewed(offsets: dict[str, float]) -> Verdict:
    """Judge by how much clocks are ahead of the one here; what counts is the largest difference of any two."""
    shown = {"this machine": 0.0, **offsets}
    first, last = min(shown, key=shown.__getitem__), max(shown, key=shown.__getitem__)
    apart = shown[last] - shown[first]
    if apart <= SKEW:
        return fine(f"{', '.join(shown)} agree within {seconds(SKEW)}")
    return warning(f"the clock of {last} is {seconds(apart)} ahead of that of {first}")
