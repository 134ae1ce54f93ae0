"""What the end of an attempt means. Pure: values in, values out."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from workers.backoff import Delays
from workers.errors import Reject, RetryLater, Snooze, seconds
from workers.failure import clean, describe, trace
from workers.verdict import Verdicts

MAX_CRASHES = 3
"""How often the worker of one delivery may die before it is given up."""


@dataclass(frozen=True, slots=True)
class Done:
    """It worked. A handler may return it; None, or whatever is no outcome, means the same.

    `result` is what is kept of it with the delivery, for `outbox.status`: a JSON value of at most 8 KiB. To return the
    value itself says the same; None is none.

    >>> return workers.Done(result={"pages": 3})
    """

    result: Any = field(default=None, hash=False)
    json: str | None = field(default=None, init=False, compare=False, repr=False)
    """The result as it is stored, once the worker has looked at it."""


@dataclass(frozen=True, slots=True, init=False)
class Retry:
    """It failed; try again in `delay` (seconds or timedelta; None leaves it to the handler's backoff).

    Returned by a handler it does what raising `RetryLater` does: it costs an attempt, and a transaction is rolled back.

    >>> return workers.Retry(delay=60, reason="the bank is closed")
    """

    delay: float | None
    reason: str

    def __init__(self, delay: float | timedelta | None = None, reason: str = "asked to be tried again later") -> None:
        object.__setattr__(self, "delay", None if delay is None else seconds(delay))
        object.__setattr__(self, "reason", reason)


@dataclass(frozen=True, slots=True)
class Snoozed:
    """It was put off by `delay` seconds, at no cost; without a `reason` the last error stays."""

    delay: float
    reason: str


@dataclass(frozen=True, slots=True)
class Dead:
    """It failed for good, with `reason` as the dead letter's error.

    Returned by a handler it does what raising `Reject` does; a transaction is rolled back.

    >>> return workers.Dead("no such user")
    """

    reason: str
    traceback: str | None = field(default=None, compare=False, repr=False)
    """Where it was raised, for the dead letter."""


@dataclass(frozen=True, slots=True)
class Expired(Dead):
    """It is older than what is retained and was not run."""


Outcome = Done | Retry | Snoozed | Dead
DONE = Done()
NONE_FINAL = Verdicts()


def said(returned: object) -> RetryLater | Snooze | Reject | None:
    """What a handler would have raised to say what it returned; None for success."""
    if isinstance(returned, Retry):
        return RetryLater(returned.delay, returned.reason)
    if isinstance(returned, Dead):
        return Reject(returned.reason)
    # Who writes `return` for `raise` must not have said "done".
    return returned if isinstance(returned, RetryLater | Snooze | Reject) else None


def take(returned: object) -> None:
    """Raise what a handler's return value stands for, unless that is success."""
    if (error := said(returned)) is not None:
        raise error


def judge(
    error: BaseException,
    *,
    attempt: int,
    max_attempts: int,
    backoff: Delays,
    random: float,
    verdicts: Verdicts = NONE_FINAL,
) -> Outcome:
    """The outcome of an attempt that ended with `error`; `attempt` counts from 1.

    >>> judge(ValueError("no"), attempt=10, max_attempts=10, backoff=Backoff(), random=0.5)
    Dead(reason='ValueError: no')
    """
    if isinstance(error, Snooze) and not verdicts.all_final:
        return Snoozed(error.delay, clean(str(error.reason)))
    if isinstance(error, Reject):
        return Dead(clean(f"rejected: {error.reason}"), trace(error))
    if attempt >= max_attempts or verdicts.final(error):
        return Dead(describe(error), trace(error))
    delay = error.delay if isinstance(error, RetryLater) else None
    return Retry(backoff.delay(attempt, random, error) if delay is None else delay, describe(error))
