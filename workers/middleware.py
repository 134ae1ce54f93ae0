"""Middleware: what an app has around every run of its handlers."""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
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


def check(middleware: Callable[..., Any], takes: str = "(event, next)") -> None:
    """Raises `HandlerError` for what cannot be a middleware."""
    called = middleware if inspect.isroutine(middleware) else getattr(middleware, "__call__", None)  # noqa: B004
    if not inspect.iscoroutinefunction(called):
        raise HandlerError(f"a middleware must be `async def` and take {takes}, not {middleware!r}")


def around(middleware: Sequence[Middleware], run: Run, log: Any) -> Run:
    """`run` with middleware around it, the first outermost; `run` itself when there is none."""
    return through(middleware, SingleAttempt, run, log)


def through(middleware: Sequence[Callable[..., Any]], attempt: type[Attempt], run: Run, log: Any) -> Run:
    """`around`, for runs that are seen as this kind of attempt."""
    return partial(_through, tuple(reversed(middleware)), attempt, run, log) if middleware else run


async def _through(middleware: Sequence[Callable[..., Any]], kind: type[Attempt], run: Run, log: Any, job: Job) -> bool:
    attempt = kind(job, run)
    step: Callable[[Any], Awaitable[Any]] = attempt.run
    for each in middleware:
        step = partial(_call, each, step)
    try:
        final = await step(attempt.given)
    except BaseException as error:
        if not attempt.committed:
            raise
        log.error("middleware.too_late", **job.facts(), error=describe(error))
        return True
    if attempt.committed:
        if (changed := attempt.changed(final)) is not None:
            log.error("middleware.too_late", **job.facts(), outcome=changed)
        return True
    if attempt.left is not None:
        raise attempt.left
    attempt.take(final)
    return False


async def _call(middleware: Callable[..., Any], inner: Callable[[Any], Awaitable[Any]], given: Any) -> Any:
    return await middleware(given, inner)


class Attempt(ABC):
    """The handler's run as the innermost middleware sees it: its end is a value."""

    given: Any
    """What middleware is called with, and must pass on."""
    outcome: Any = None
    """What it gets back."""

    def __init__(self, job: Job, run: Run) -> None:
        self.committed = False
        """It is in PostgreSQL and cannot be changed any more."""
        self.begun = False
        self.left: BaseException | None = None
        """What ended a run that has no outcome here: it was lost, or the worker stops."""
        self._job = job
        self._run = run

    async def run(self, given: Any) -> Any:
        """What `next` is to the innermost middleware."""
        if given is not self.given:
            raise HandlerError("a middleware must pass on the event that it was given: handlers get what was stored")
        if self.committed:
            return self.outcome
        job = self._job
        if self.begun and job.lane.handler.at_most_once:
            raise HandlerError("a middleware must not run a handler with at_most_once=True again")
        self.begun = True
        job.done = DONE
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
            self.outcome = self.failed(error)
        else:
            self.outcome = self.worked()
        return self.outcome

    @abstractmethod
    def worked(self) -> Any:
        """What the run came to when the handler returned."""

    @abstractmethod
    def failed(self, error: BaseException) -> Any:
        """What the run came to when it raised. May raise that again."""

    @abstractmethod
    def changed(self, final: Any) -> str | None:
        """What middleware has put in the place of a committed outcome, to be shown."""

    @abstractmethod
    def take(self, final: Any) -> None:
        """Let the run end as the outermost middleware says: return for done, or raise."""


def put_in_place(committed: Outcome | None, final: Any) -> str | None:
    """What middleware has put in the place of this outcome, to be shown without a result's value. A `Done` without a
    result takes nothing back."""
    if not isinstance(final, Done):
        return repr(final)
    if not isinstance(committed, Done):
        return "Done()"
    return None if final.result in (None, committed.result) else "Done with another result"


class SingleAttempt(Attempt):
    """The run of one event."""

    outcome: Outcome | None

    def __init__(self, job: Job, run: Run) -> None:
        super().__init__(job, run)
        self.given = job.event()
        self.error: BaseException | None = None
        """What the outcome was judged by, unless it is done."""

    def worked(self) -> Outcome:
        self.error = None
        return self._job.done

    def failed(self, error: BaseException) -> Outcome:
        self.error = error
        return self._job.lane.decide(self._job, error)

    def changed(self, final: Any) -> str | None:
        return put_in_place(self.outcome, final)

    def take(self, final: Any) -> None:
        if final is self.outcome:
            if self.error is None:
                return
            raise DecidedError(final) from self.error
        if isinstance(final, Snoozed):
            raise Snooze(final.delay, final.reason)
        if not isinstance(final, Outcome):
            raise HandlerError(f"a middleware returned {final!r}: return what `await next(event)` gives, or an outcome")
        take(final)
        self._job.done = self._job.lane.worked(final)
