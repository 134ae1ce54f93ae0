"""What the end of an attempt means. Pure: values in, values out."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

from workers.backoff import Backoff
from workers.errors import ChildTraceback, Reject, RetryLater, Snooze

MAX_ERROR_LENGTH = 4000
"""Characters of an error that are kept."""

MAX_CRASHES = 3
"""How often the worker of one delivery may die before it is given up."""


@dataclass(frozen=True, slots=True)
class Done:
    """It worked."""


@dataclass(frozen=True, slots=True)
class Retry:
    """It failed; try again in `delay` seconds."""

    delay: float
    error: str


@dataclass(frozen=True, slots=True)
class Snoozed:
    """It was put off by `delay` seconds, at no cost."""

    delay: float
    error: str


@dataclass(frozen=True, slots=True)
class Dead:
    """It failed for good."""

    error: str


Outcome = Done | Retry | Snoozed | Dead
DONE = Done()


def judge(error: BaseException, *, attempt: int, max_attempts: int, backoff: Backoff, random: float) -> Outcome:
    """The outcome of an attempt that ended with `error`; `attempt` counts from 1.

    >>> judge(ValueError("no"), attempt=10, max_attempts=10, backoff=Backoff(), random=0.5)
    Dead(error='ValueError: no')
    """
    if isinstance(error, Snooze):
        return Snoozed(error.delay, str(error))
    if isinstance(error, Reject):
        return Dead(clean(f"rejected: {error.reason}"))
    if attempt >= max_attempts:
        return Dead(describe(error))
    delay = error.delay if isinstance(error, RetryLater) else backoff.delay(attempt, random)
    return Retry(delay, describe(error))


def describe(error: BaseException) -> str:
    """An error as one text for people: its type, its message, and where the handler raised it."""
    if isinstance(error.__cause__, ChildTraceback):
        return clean(str(error.__cause__))
    frames = traceback.extract_tb(error.__traceback__)
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be shown)"
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if frames:
        last = frames[-1]
        place = f" (at {Path(last.filename).name}:{last.lineno} in {last.name})"
        return clean(text, MAX_ERROR_LENGTH - len(place)) + place
    return clean(text)


def clean(text: str, limit: int = MAX_ERROR_LENGTH) -> str:
    """`text` as PostgreSQL can store it: no NUL, no lone surrogates, not too long."""
    text = text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= limit else text[: limit - 1] + "…"
