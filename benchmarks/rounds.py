"""Measuring several sides in turns, so that what changes on the machine meanwhile meets all of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping

from benchmarks.report import Side, number
from outbox.errors import OutboxError


class MeasurementError(OutboxError):
    """A side could not be measured; the message says which program failed and how its log ends."""


def say(text: str) -> None:
    """Progress, on stderr: stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def in_turns(unit: str, sides: Mapping[str, Callable[[], float]], repeat: int) -> dict[str, Side]:
    """Measure every side `repeat` times, A B A B, and return them by name.

    >>> in_turns("tx/s", {"one": lambda: 1.0, "two": lambda: 2.0}, repeat=3)["two"].runs
    (2.0, 2.0, 2.0)
    """
    runs: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(1, repeat + 1):
        for name, measure in sides.items():
            value = measure()
            runs[name].append(value)
            say(f"  {turn}/{repeat}  {name}: {number(value)} {unit}")
    return {name: Side(name, unit, tuple(values)) for name, values in runs.items()}


def wait_until(reached: Callable[[], bool], what: str, *, timeout: float, every: float = 0.01) -> None:
    """Ask until `reached` says yes. Raises `MeasurementError` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not reached():
        if time.monotonic() > deadline:
            raise MeasurementError(f"{what}: not within {timeout:.0f} s")
        time.sleep(every)
