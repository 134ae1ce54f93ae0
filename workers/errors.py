"""What a handler may raise to say how its attempt ends, and what the workers themselves raise."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from outbox.errors import ConfigurationError, OutboxError

LONGEST_DELAY = 10 * 365 * 24 * 3600.0
"""Seconds. A moment that PostgreSQL cannot hold would stop every outcome of the worker, so delays end long before."""


def seconds(delay: float | timedelta) -> float:
    """A delay in seconds. Negative delays count as none. Raises `ValueError` beyond ten years."""
    value = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
    if value != value or value == float("inf"):
        raise ValueError("a delay must be a finite number of seconds")
    if value > LONGEST_DELAY:
        raise ValueError("a delay must be at most ten years")
    return max(0.0, value)


class RetryLater(OutboxError):
    """This attempt failed; try again after `delay` (seconds or timedelta; None leaves it to the backoff). Costs an
    attempt. To return instead of raise: `Retry`.

    >>> raise workers.RetryLater(60, "the bank is closed")
    """

    def __init__(self, delay: float | timedelta | None, reason: str = "asked to be tried again later") -> None:
        super().__init__(reason)
        self.delay = None if delay is None else seconds(delay)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.delay, self.reason)


class Snooze(OutboxError):
    """Not now: run again after `delay` (seconds or timedelta). Costs no attempt.

    >>> raise workers.Snooze(timedelta(minutes=5))
    """

    def __init__(self, delay: float | timedelta, reason: str = "snoozed") -> None:
        super().__init__(reason)
        self.delay = seconds(delay)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.delay, self.reason)


class Reject(OutboxError):
    """This event will never work: make it a dead letter now, with `reason` as its error. To return instead of raise:
    `Dead`.

    >>> raise workers.Reject("no such user")
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class HandlerError(ConfigurationError, TypeError):
    """A function that cannot be a handler as it is declared. Raised where it is decorated."""


class PayloadMismatchError(OutboxError):
    """A payload that does not fit the handler's parameters. `field` names the first one that does not."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class SessionOwnedError(OutboxError):
    """A handler tried to end the transaction that the worker owns."""


class BatchAnswerError(OutboxError):
    """What a handler with `batch=` returned is no outcome for each of its events."""

    def __init__(self, what: str) -> None:
        super().__init__(
            "a batch handler returns None, or an outcome for each event: a list in their order or a dict by event.id, "
            f"with workers.Done, Retry or Dead, an exception or None for each; {what}"
        )


class HandlerTimeoutError(OutboxError):
    """The attempt took longer than the handler's `timeout`."""


class TransactionFailedError(OutboxError):
    """A handler's transaction failed again and again through no fault of the handler: conflicts or lost connections."""


class SoftTimeout(asyncio.CancelledError):
    """Raised inside a run, once, when it has used up its handler's `soft_timeout`: time to clean up.

    Who catches it may still end well, until `timeout`. Who lets it pass fails the attempt. It is no `Exception`, so
    that `except Exception` does not take it for a failure of what was called.

    >>> try:
    ...     await convert(video)
    ... except workers.SoftTimeout:
    ...     await remember(video.position)
    ...     raise workers.RetryLater(60) from None
    """

    def __init__(self, message: str = "it ran for longer than its soft timeout") -> None:
        super().__init__(message)


class DecidedError(OutboxError):
    """Carries the outcome of a run that was judged already; its cause is what it was judged by."""

    def __init__(self, outcome: Any) -> None:
        super().__init__("the run has its outcome")
        self.outcome = outcome


class SupersededError(OutboxError):
    """Another worker recorded an outcome for this delivery first; what this attempt did is rolled back."""


class RowRefusedError(OutboxError):
    """PostgreSQL refuses one delivery's row, for what is in it or because another transaction holds it (`held`)."""

    def __init__(self, message: str, *, held: bool = False) -> None:
        super().__init__(message)
        self.held = held


class ChildDiedError(OutboxError):
    """The child process of a handler with `pool="process"` died in the middle of its run."""


class ChildFailedError(OutboxError):
    """A child process could not run its handler, or its exception could not be carried to the worker: see the text."""


class ChildTraceback(Exception):
    """The cause of an exception that was raised in a child process: what it said there, and its `trace`."""

    def __init__(self, text: str, trace: str | None = None) -> None:
        super().__init__(text)
        self.trace = trace
