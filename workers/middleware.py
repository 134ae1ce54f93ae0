"""Middleware: what an app has around every run of its handlers."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from outbox.event import Event
from workers.errors import DecidedError, HandlerError, Snooze, SoftTimeout, SupersededError
from workers.failure import describe
from workers.job import Job
from workers.outcome import DONE, Done, Outcome, Snoozed, take

Next: TypeAlias = Callable[[Event], Awaitable[Outcome]]
Middleware: TypeAlias = Callable[[Event, Next], Awaitable[Outcome]]
Run: TypeAlias = Callable[[Job], Awaitable[bool]]


def check(middleware: Middleware) -> None:
    """Raises `HandlerError` for what cannot be a middleware."""
    called = middleware if inspect.isroutine(middleware) else getattr(middleware, "__call__", None)  # noqa: B004
    if not inspect.iscoroutinefunction(called):
        raise HandlerError(f"a middleware must be `async def` and take (event, next), not {middleware!r}")


def around(middleware: Sequence[Middleware], run: Run, log: Any) -> Run:
    """`run` with middleware around it, the first outermost; `run` itself when there is none."""
    return partial(_through, tuple(reversed(middleware)), run, log) if middleware else run


async def _through(middleware: Sequence[Middleware], run: Run, log: Any, job: Job) -> bool:
    attempt = _Attempt(job, run)
    step: Next = attempt.run
    for each in middleware:
        step = partial(_call, each, step)
    try:
        final = await step(attempt.event)
    except BaseException as error:
        if not attempt.committed:
            raise
        log.error("middleware.too_late", event_id=job.event_id, error=describe(error))
        return True
    if attempt.committed:
        if not isinstance(final, Done):
            log.error("middleware.too_late", event_id=job.event_id, outcome=repr(final))
        return True
    if attempt.left is not None:
        raise attempt.left
    if final is attempt.outcome:
        if attempt.error is None:
            return False
        raise DecidedError(final) from attempt.error
    if isinstance(final, Snoozed):
        raise Snooze(final.delay, final.reason)
    if not isinstance(final, Outcome):
        raise HandlerError(f"a middleware returned {final!r}: return what `await next(event)` gives, or an outcome")
    take(final)
    return False


async def _call(middleware: Middleware, inner: Next, event: Event) -> Outcome:
    return await middleware(event, inner)


class _Attempt:
    """The handler's run as the innermost middleware sees it: its end is a value."""

    def __init__(self, job: Job, run: Run) -> None:
        self.event = job.event()
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        """What the outcome was judged by, unless it is done."""
        self.committed = False
        """It is in PostgreSQL and cannot be changed any more."""
        self.begun = False
        self.left: BaseException | None = None
        """What ended a run that has no outcome here: it was lost, or the worker stops."""
        self._job = job
        self._run = run

    async def run(self, event: Event) -> Outcome:
        if event is not self.event:
            raise HandlerError("a middleware must pass on the event that it was given: handlers get what was stored")
        if self.committed:
            return DONE
        job = self._job
        if self.begun and job.lane.handler.at_most_once:
            raise HandlerError("a middleware must not run a handler with at_most_once=True again")
        self.begun = True
        try:
            self.committed = await self._run(job)
        except BaseException as error:
            told = job.cause == "timeout" or isinstance(error, SoftTimeout)
            if isinstance(error, SupersededError) or job.closed or job.cause in ("lost", "stop"):
                self.left = error
                raise
            if isinstance(error, asyncio.CancelledError) and not told:
                # A middleware's own, such as that of asyncio.timeout.
                raise
            self.error, self.outcome = error, job.lane.decide(job, error)
        else:
            self.error, self.outcome = None, DONE
        return self.outcome
