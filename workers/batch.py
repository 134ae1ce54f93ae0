"""Several deliveries that run as one: what a handler with `batch=` may ask for, and what its answer means. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from workers.binding import Binding
from workers.errors import BatchAnswerError, HandlerError
from workers.job import Job
from workers.outcome import DONE, Dead, Done, Outcome, Retry, said

LARGEST = 1000
"""Events that one batch may have. They are held in memory, and recorded in one transaction."""

LONGEST_WAIT = 60.0
"""Seconds."""

WAIT = 0.05
"""Seconds that a batch waits for more when the handler does not say."""

Decide = Callable[[Job, Any], Outcome]


class Batch(Job):
    """Deliveries of one handler that run as one. To its lane it is one run, with one deadline and one end; in logs it
    goes by its first event."""

    __slots__ = ("decide", "errors", "jobs", "outcomes", "settled")

    def __init__(self, jobs: list[Job], decide: Decide) -> None:
        first = jobs[0]
        super().__init__(first.lane, first.event_id, first.at, first.name, first.key, "", "")
        self.attempt = first.attempt
        self.jobs = jobs
        """What is to be done."""
        self.settled: list[Job] = []
        """What turned out to have an outcome already."""
        self.decide = decide
        self.outcomes: list[tuple[Job, Outcome]] = []
        """What came of each, when the handler has returned."""
        self.errors: dict[Job, BaseException] = {}
        """What they were judged by, unless they are done."""

    def answer(self, returned: object) -> None:
        """Take what the handler returned. Raises `BatchAnswerError`."""
        values = answers(self.jobs, returned)
        self.outcomes = []
        self.change(values)

    def fail(self, error: BaseException) -> bool:
        """Take the failure of the run for that of its events, if it can be told whose it is: False, and nothing is
        taken, while several are in it and one of them may be to blame."""
        jobs = [job for job in self.jobs if not job.closed]
        if len(jobs) > 1 and not isinstance(error, BatchAnswerError | HandlerError):
            return False
        for job in jobs:
            job.cause = job.cause or self.cause
        self.outcomes = []
        self.change([(job, error) for job in jobs])
        return True

    def change(self, values: Iterable[tuple[Job, Any]]) -> None:
        """Put `Done`, or what an error means, in the place of what came of these."""
        found = dict(self.outcomes)
        for job, value in values:
            if isinstance(value, Done):
                self.errors.pop(job, None)
                found[job] = DONE if value.result is None else job.lane.worked(value)
            else:
                self.errors[job] = value
                found[job] = self.decide(job, value)
        self.outcomes = list(found.items())


def halves(jobs: list[Job]) -> tuple[list[Job], list[Job]]:
    """A batch that failed, as the two that are tried in its place.

    One bad event of n costs 2 * ceil(log2(n)) more runs until it is alone; n bad ones cost 2 * n - 2.
    """
    middle = (len(jobs) + 1) // 2
    return jobs[:middle], jobs[middle:]


def answers(jobs: Sequence[Job], returned: object) -> list[tuple[Job, Any]]:
    """What a handler says of each event: `Done` or an exception.

    It returns None when all went well, one outcome for all events, or one value for each, in order or by event id: an
    outcome or an exception. None stands for done, also for ids that are not mentioned. Raises `BatchAnswerError` for
    anything else.
    """
    if returned is None or isinstance(returned, Done):
        return [(job, returned or DONE) for job in jobs]
    if (of_all := said(returned)) is not None:
        return [(job, of_all) for job in jobs]
    values: Sequence[Any]
    if isinstance(returned, Mapping):
        by_id = {str(event_id): value for event_id, value in returned.items()}
        values = [by_id.pop(job.event_id, None) for job in jobs]
        if by_id:
            raise BatchAnswerError(f"it names {next(iter(by_id))!r}, which is no event of this batch")
    elif isinstance(returned, Sequence) and not isinstance(returned, str | bytes):
        values = returned
    else:
        raise BatchAnswerError(f"it is a {type(returned).__name__}")
    if len(values) != len(jobs):
        raise BatchAnswerError(f"it has {len(values)} values for {len(jobs)} events")
    for value in values:
        if not (value is None or isinstance(value, Done | Retry | Dead | BaseException)):
            raise BatchAnswerError(f"it holds a {type(value).__name__}")
    return [(job, DONE if value is None else said(value) or value) for job, value in zip(jobs, values, strict=True)]


def check(name: str, binding: Binding, batch: int | None, batch_wait: float | None, pool: str | None) -> None:
    """Refuse, with advice, what makes no sense together. Raises `HandlerError`."""
    asks = "events" in binding.injected
    if batch is None:
        if batch_wait is not None:
            raise HandlerError(f"handler {name!r}: batch_wait needs batch=…")
        if asks:
            raise HandlerError(f"handler {name!r} asks for list[Event]: pass batch=…, or ask for one Event")
        return
    if not 1 <= batch <= LARGEST:
        raise HandlerError(f"handler {name!r}: batch must be a number from 1 to {LARGEST}")
    if batch_wait is not None and not 0 <= batch_wait <= LONGEST_WAIT:
        raise HandlerError(f"handler {name!r}: batch_wait must be from 0 to {LONGEST_WAIT:g} seconds")
    if not asks:
        raise HandlerError(f"handler {name!r} has batch=… and must take its events: annotate a parameter list[Event]")
    if pool is not None:
        raise HandlerError(f"handler {name!r}: batch=… runs on the event loop or in threads; leave pool=… out")
    if binding.fields or binding.rest:
        field = binding.fields[0][0] if binding.fields else "**kwargs"
        raise HandlerError(f"handler {name!r}: with batch=… {field!r} has no one payload: take it from event.payload")
    if "payload" in binding.injected:
        raise HandlerError(
            f"handler {name!r}: with batch=… there is no one payload, and a dependency takes fields of it: let it take "
            "list[Event]"
        )
    if "event" in binding.injected:
        raise HandlerError(f"handler {name!r} asks for list[Event] and for Event: with batch=… there is no single one")
    if "context" in binding.injected:
        raise HandlerError(
            f"handler {name!r} asks for a Context: the events of a batch have no attempt in common; leave it out"
        )
