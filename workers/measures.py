"""What a worker counts of its own work: once a batch of outcomes where that will do, else once a run.

`monitoring` shows it. Where that is off nothing here is called."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from outbox.tally import SECONDS, Histogram
from workers.batch import Batch
from workers.crash import Crashed
from workers.errors import SupersededError
from workers.job import Job
from workers.outcome import Dead, Done, Outcome, Retry, Snoozed

if TYPE_CHECKING:
    from workers.lane import Lane

Run: TypeAlias = Callable[[Job], Awaitable[bool]]

_NAMES: dict[type, str] = {Done: "done", Retry: "retry", Crashed: "retry", Snoozed: "snoozed", Dead: "dead"}


class HandlerMeasures:
    """One handler's. Written by the event loop's thread, read by others."""

    def __init__(self) -> None:
        self.outcomes = Counter(dict.fromkeys((*_NAMES.values(), "superseded"), 0))
        self.run_seconds = Histogram(SECONDS)
        """From the start of a run to its end, with its transaction."""
        self.done_seconds = Histogram(SECONDS)
        """From an event's `created_at` until PostgreSQL has the outcome "done"."""


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
        observe, outcomes, clock = measures.run_seconds.observe, measures.outcomes, time.perf_counter

        async def measured(job: Job) -> bool:
            began = clock()
            try:
                recorded = await run(job)
            except SupersededError:
                outcomes["superseded"] += 1
                raise
            finally:
                observe(clock() - began)
            if recorded:
                self.recorded(job.outcomes if isinstance(job, Batch) else [(job, Done())])
                if isinstance(job, Batch):
                    outcomes["dead"] += sum(isinstance(outcome, Dead) for _, outcome in job.outcomes)
            return recorded

        return measured

    def recorded(self, batch: Iterable[tuple[Job, Outcome | None]]) -> None:
        """These outcomes are in PostgreSQL now. Without what is dead, which `buried` counts."""
        now = time.time() * 1_000_000
        for job, outcome in batch:
            if outcome is None or isinstance(outcome, Dead):
                continue
            measures = self.handlers[job.lane.name]
            measures.outcomes[_NAMES[type(outcome)]] += 1
            if isinstance(outcome, Done):
                # The clocks of two machines.
                measures.done_seconds.observe(max(0.0, now - job.at) / 1_000_000)

    def buried(self, job: Job) -> None:
        """This delivery is dead now."""
        self.handlers[job.lane.name].outcomes["dead"] += 1
