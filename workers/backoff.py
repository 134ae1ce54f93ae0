"""How long to wait before the next attempt. Pure: the randomness is an argument."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential with jitter, capped: `min(maximum, initial * base ** (attempt - 1) + jitter * random)`, in seconds.

    >>> Backoff(initial=1, maximum=60, jitter=0).delay(attempt=4, random=0.5)
    8.0
    """

    initial: float = 1.0
    maximum: float = 3600.0
    base: float = 2.0
    jitter: float = 1.0

    def __post_init__(self) -> None:
        if not (self.initial >= 0 and self.maximum >= 0 and self.base >= 1 and self.jitter >= 0):
            raise ValueError("backoff: initial, maximum and jitter must not be negative, base not below 1")

    def delay(self, attempt: int, random: float) -> float:
        """Seconds to wait after the failed attempt number `attempt` (from 1); `random` lies in [0, 1)."""
        try:
            grown = self.initial * self.base ** (attempt - 1)
        except OverflowError:
            return self.maximum
        return min(self.maximum, grown + self.jitter * random)
