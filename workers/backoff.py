"""How long to wait before the next attempt. Pure but for tenacity's own strategies: the randomness is an argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, TypeAlias

from tenacity import RetryCallState, Retrying
from tenacity.wait import wait_base

from workers.errors import LONGEST_DELAY, HandlerError, seconds


class Delays(Protocol):
    """What decides about delays: `Backoff`, or what `delays` makes of the other ways to say it."""

    def delay(self, attempt: int, random: float, error: BaseException | None = None) -> float:
        """Seconds to wait after the failed attempt number `attempt` (from 1), which ended with `error`; `random` lies
        in [0, 1)."""
        ...


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
        if not self.maximum <= LONGEST_DELAY:
            raise ValueError("backoff: maximum must be at most ten years")

    def delay(self, attempt: int, random: float, error: BaseException | None = None) -> float:
        """Seconds to wait after the failed attempt number `attempt` (from 1), whatever the `error`; `random` lies in
        [0, 1)."""
        try:
            grown = self.initial * self.base ** (attempt - 1)
        except OverflowError:
            return self.maximum
        return min(self.maximum, grown + self.jitter * random)


DEFAULT = Backoff()

BackoffLike: TypeAlias = Backoff | float | timedelta | Sequence[float | timedelta] | wait_base
"""The ways to say `backoff=`."""


@dataclass(frozen=True, slots=True)
class Steps:
    """A delay for each attempt, in seconds; the last one repeats.

    >>> Steps((1.0, 10.0)).delay(attempt=7, random=0.5)
    10.0
    """

    seconds: tuple[float, ...]

    def delay(self, attempt: int, random: float, error: BaseException | None = None) -> float:
        """The step of this attempt."""
        return self.seconds[min(attempt, len(self.seconds)) - 1]


@dataclass(frozen=True, slots=True)
class Strategy:
    """One of tenacity's wait strategies. It draws its own random numbers.

    What it gives is kept between 0 and ten years. Where it fails, the default backoff stands in: the end of an attempt
    must be recorded whatever a strategy does.
    """

    wait: wait_base

    def delay(self, attempt: int, random: float, error: BaseException | None = None) -> float:
        """What the strategy says of this attempt and its error."""
        try:
            given = float(self.given(attempt, error))
        except Exception:
            return DEFAULT.delay(attempt, random)
        return min(max(0.0, given), LONGEST_DELAY) if given == given else DEFAULT.delay(attempt, random)

    def given(self, attempt: int, error: BaseException | None) -> float:
        """The strategy's own answer."""
        state = RetryCallState(Retrying(), None, (), {})
        state.attempt_number = attempt
        if error is not None:
            state.set_exception((type(error), error, error.__traceback__))
        return self.wait(state)


def delays(given: BackoffLike) -> Delays:
    """What `backoff=` means: a `Backoff`, seconds or a timedelta for every attempt, a sequence of them for the first,
    second and further attempts, of which the last repeats, or a wait strategy of tenacity.

    Raises `HandlerError` for anything else, for delays that are negative, not finite or longer than ten years, and for
    a strategy that gives no such number.

    >>> delays([1, timedelta(minutes=1)]).delay(attempt=2, random=0.5)
    60.0
    """
    if isinstance(given, Backoff):
        return given
    if isinstance(given, wait_base):
        return _strategy(given)
    many = isinstance(given, Sequence) and not isinstance(given, str | bytes | bytearray)
    steps = tuple(_step(each) for each in (given if many else (given,)))  # type: ignore[union-attr]
    if not steps:
        raise HandlerError("backoff must have at least one delay; to try only once say max_attempts=1")
    return Steps(steps)


def _step(given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float | timedelta):
        raise HandlerError(
            "backoff must be a workers.Backoff, a number of seconds, a timedelta, a sequence of these, or one of "
            f"tenacity's wait strategies, not {given!r}"
        )
    try:
        if (given.total_seconds() if isinstance(given, timedelta) else given) < 0:
            raise ValueError("a delay must not be negative")
        return seconds(given)
    except (ValueError, OverflowError) as error:
        raise HandlerError(f"backoff: {error}, not {given!r}") from None


def _strategy(wait: wait_base) -> Strategy:
    strategy = Strategy(wait)
    for attempt in (1, 2):
        try:
            given = strategy.given(attempt, Exception())
        except Exception:
            # It looks at the error, and this is none that it knows.
            return strategy
        if not (isinstance(given, int | float) and given >= 0):
            raise HandlerError(f"backoff: {type(wait).__name__} gives {given!r} as the seconds after attempt {attempt}")
    return strategy
