"""Middleware around the runs of handlers with `batch=`: many events, and an outcome for each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias
from uuid import UUID

from outbox.event import Event
from workers.batch import Batch
from workers.errors import HandlerError, Snooze
from workers.job import Job
from workers.middleware import Attempt, Run, put_in_place, through
from workers.outcome import Done, Outcome, Snoozed, said

Outcomes: TypeAlias = Mapping[UUID, Outcome]
BatchNext: TypeAlias = Callable[[Sequence[Event]], Awaitable[Outcomes]]
BatchMiddleware: TypeAlias = Callable[[Sequence[Event], BatchNext], Awaitable[Outcomes]]


def around(middleware: Sequence[BatchMiddleware], run: Run, log: Any) -> Run:
    """`run` with middleware around it, the first outermost; `run` itself when there is none."""
    return through(middleware, BatchAttempt, run, log)


class BatchAttempt(Attempt):
    """The run of a batch. One that raises has no outcomes yet: it may be divided."""

    outcome: Outcomes | None

    def __init__(self, job: Job, run: Run) -> None:
        super().__init__(job, run)
        assert isinstance(job, Batch)
        self._batch = job
        self.given = tuple(each.event() for each in job.jobs)
        self._ids = {str(event.id): event.id for event in self.given}

    def worked(self) -> Outcomes:
        return {self._ids[job.event_id]: outcome for job, outcome in self._batch.outcomes}

    def failed(self, error: BaseException) -> Outcomes:
        raise error

    def changed(self, final: Any) -> str | None:
        try:
            return next(self._shown(final), None)
        except HandlerError as error:
            return str(error)

    def _shown(self, final: Any) -> Iterator[str]:
        before = dict(self._batch.outcomes)
        for job, outcome in self._changes(final):
            if (changed := put_in_place(before.get(job), outcome)) is not None:
                yield f"{job.event_id}: {changed}"

    def take(self, final: Any) -> None:
        self._batch.change([(job, _value(outcome)) for job, outcome in self._changes(final)])

    def _changes(self, final: Any) -> Iterator[tuple[Job, Outcome]]:
        if not isinstance(final, Mapping):
            raise HandlerError(f"a batch middleware returned a {type(final).__name__}: {_ADVICE}")
        named = {str(event_id): outcome for event_id, outcome in final.items()}
        if strange := named.keys() - self._ids.keys():
            raise HandlerError(f"a batch middleware named {min(strange)!r}, which is no event of its batch: {_ADVICE}")
        before = dict(self._batch.outcomes)
        for job in self._batch.jobs:
            outcome = named.get(job.event_id)
            if job.closed and outcome is None:
                continue
            if not isinstance(outcome, Outcome):
                raise HandlerError(f"a batch middleware returned {outcome!r} for event {job.event_id}: {_ADVICE}")
            if outcome != before.get(job):
                yield job, outcome


_ADVICE = "return what `await next(events)` gives, or a dict with workers.Done, Retry or Dead for each event.id"


def _value(outcome: Outcome) -> Any:
    if isinstance(outcome, Snoozed):
        return Snooze(outcome.delay, outcome.reason)
    return outcome if isinstance(outcome, Done) else said(outcome)
