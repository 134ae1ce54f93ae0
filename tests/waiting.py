"""Waiting for a state that nobody announces: it is asked for again and again, less often the longer it takes.

Each question costs processor time, ours and a server's. With a fixed pause of 10 ms a run had some 50,000 of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

SHORTEST, LONGEST = 0.005, 0.05
"""Seconds between two questions."""


def pauses(limit: float) -> Iterator[float]:
    """The seconds to wait after each question, a tenth of those that have passed; it ends after `limit` seconds."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) < limit:
        yield min(max(passed / 10, SHORTEST), LONGEST)


def wait_for(condition: Callable[[], Any], what: str = "the state", timeout: float = 60.0) -> Any:
    """Wait until the condition holds, and return its value."""
    for pause in pauses(timeout):
        if value := condition():
            return value
        time.sleep(pause)
    raise AssertionError(f"{what} did not come within {timeout:g} s")


async def until(condition: Callable[[], Any], what: str = "the state", timeout: float = 60.0) -> Any:
    """The same, with the event loop running meanwhile."""
    for pause in pauses(timeout):
        if value := condition():
            return value
        await asyncio.sleep(pause)
    raise AssertionError(f"{what} did not come within {timeout:g} s")
