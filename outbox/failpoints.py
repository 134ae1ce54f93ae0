"""Failpoints: named places between two steps, at which a test makes this process die or stand still.

    OUTBOX_FAILPOINTS=relay.appended=kill@3      dies, as by SIGKILL, when it gets there for the third time
    OUTBOX_FAILPOINTS=relay.ticked=stop          stands still, as by SIGSTOP, until somebody continues it

Several are separated by commas. Without the variable `reach` does nothing.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import dataclass

from outbox.errors import ConfigurationError

VARIABLE = "OUTBOX_FAILPOINTS"

_ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclass(frozen=True, slots=True)
class Failpoint:
    """What happens at a place when it is reached for the `turn`-th time."""

    place: str
    signal: signal.Signals
    turn: int = 1

    @classmethod
    def parse(cls, text: str) -> Failpoint:
        """Read `place=action` or `place=action@turn`. Raises `ConfigurationError`.

        >>> Failpoint.parse("relay.ticked=kill@3").turn
        3
        """
        place, _, what = text.strip().partition("=")
        action, _, turn = what.partition("@")
        if not place or action not in _ACTIONS or not (turn or "1").isdecimal():
            raise ConfigurationError(f"{VARIABLE}: {text!r} is not like relay.ticked=kill@3 or relay.ticked=stop")
        return cls(place, _ACTIONS[action], int(turn or 1))


class Armed:
    """Counts how often each place was reached, and does what was asked for."""

    def __init__(self, failpoints: list[Failpoint]) -> None:
        self._failpoints = failpoints
        self._reached: Counter[str] = Counter()

    def reach(self, place: str) -> None:
        self._reached[place] += 1
        for each in self._failpoints:
            if each.place == place and each.turn == self._reached[place]:
                os.kill(os.getpid(), each.signal)


def _pass(place: str) -> None:
    """Go on."""


def _from_environment() -> Armed | None:
    given = os.environ.get(VARIABLE)
    return Armed([Failpoint.parse(text) for text in given.split(",")]) if given else None


_armed = _from_environment()

reach = _armed.reach if _armed else _pass
"""Called at every failpoint with its name."""
