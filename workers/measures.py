"""What a worker counts of its own work: once a batch of outcomes where that will do, else once a run.

`monitoring` shows it. Where that is off nothing here is called."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from outbox.tally import SECONDS, Histogram
from workers.batch import Batch
from workers.errors import SupersededError
from workers.job import Job
from workers.outcome import Dead, Done, Outcome, Retry, Snoozed

if TYPE_CHECKING:
    from workers.lane import Lane

Run: TypeAlias = Callable[[Job], Awaitable[bool]]

OUTCOMES = ("done", "retry", "snoozed", "dead", "superseded")


class HandlerMeasures:
    """One handler's. Written by the event loop's thread, read by others."""

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.run_seconds = Histogram(SECONDS)
        """From the start of a run to its end, with its transaction."""
        self.done_seconds = Histogram(SECONDS)
        """From an event's `created_at` until PostgreSQL has the outcome "done"."""
        self.took: list[float] = []
        """Seconds of runs that ended since the last batch of outcomes."""

    def done(self, moments: list[int]) -> None:
        """Events that were created at these microseconds since 1970 are done now, by PostgreSQL."""
        now = time.time() * 1_000_000
        self.outcomes["done"] += len(moments)
        ages = [(now - moment) / 1_000_000 for moment in moments]
        if min(ages) < 0:
            # The clocks of two machines.
            ages = [max(0.0, age) for age in ages]
        self.done_seconds.observe_all(ages)


class Measures:
    """Those of all handlers of a worker.

    >>> worker = Worker(app, settings, measures=Measures())
    """

    def __init__(self) -> None:
        self.handlers: dict[str, HandlerMeasures] = {}
        self.lanes: Mapping[str, Lane] = {}

    def around(self, handler: str, run: Run) -> Run:
        """`run`, measured. It gives True for what its own transaction has recorded, which nobody else would count."""
        measures = self.handlers.setdefault(handler, HandlerMeasures())
        took, outcomes, clock = measures.took, measures.outcomes, time.perf_counter

        async def measured(job: Job) -> bool:
            began = clock()
            try:
                recorded = await run(job)
            except SupersededError:
                outcomes["superseded"] += 1
                raise
            finally:
                took.append(clock() - began)
            if recorded:
                self._committed(job)
            return recorded

        return measured

    def _committed(self, job: Job) -> None:
        if isinstance(job, Batch):
            self.recorded(job.outcomes)
        else:
            self.handlers[job.lane.name].done([job.at])

    def recorded(self, batch: Iterable[tuple[Job, Outcome | None]]) -> None:
        """These outcomes are in PostgreSQL now."""
        done: dict[Lane, list[int]] = defaultdict(list)
        for job, outcome in batch:
            if type(outcome) is Done:
                done[job.lane].append(job.at)
            elif isinstance(outcome, Retry | Snoozed):
                name = "retry" if isinstance(outcome, Retry) else "snoozed"
                self.handlers[job.lane.name].outcomes[name] += 1
            elif isinstance(outcome, Dead):
                self.buried(job)
        for lane, moments in done.items():
            self.handlers[lane.name].done(moments)
        for measures in self.handlers.values():
            if measures.took:
                measures.run_seconds.observe_all(measures.took)
                measures.took.clear()

    def buried(self, job: Job) -> None:
        """This delivery is dead now."""
        self.handlers[job.lane.name].outcomes["dead"] += 1
