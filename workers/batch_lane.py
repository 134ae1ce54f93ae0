"""A lane whose handler takes its deliveries in batches: gathering them, and dividing a batch that failed."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from structlog.contextvars import unbind_contextvars

from workers import prefetch
from workers.batch import WAIT, Batch, halves
from workers.handler import Handler
from workers.job import Job
from workers.lane import Lane
from workers.outcome import Retry, Snoozed


class BatchLane(Lane):
    """Runs one handler's deliveries in batches, at most `capacity` of these at once.

    While a delivery waits, its `deadline` says until when it waits for company. First attempts and retries share
    batches; a delivery whose worker died runs alone, so that it takes no other with it again.
    """

    def __init__(self, handler: Handler, *, capacity: int, **rest: Any) -> None:
        super().__init__(handler, capacity=capacity, **rest)
        assert handler.batch is not None
        self._context.run(unbind_contextvars, "event_id", "attempt")
        self._size = handler.batch
        self._wait = WAIT if handler.batch_wait is None else handler.batch_wait
        self.least = self._size
        self.first = max(self._size, prefetch.FIRST)
        self.window = max(self._size, min(capacity * self._size, prefetch.LARGEST))
        self._halves: deque[list[Job]] = deque()
        self._alarm: asyncio.Handle | None = None
        self._alarm_at = 0.0

    # What comes in

    def retry_room(self) -> int:
        """How many due retries may be claimed now: up to a batch of them waits, ahead of new entries."""
        return self._size - len(self._retries)

    def start(self, jobs: list[Job]) -> None:
        """Run these first attempts as room allows, a full batch at once and the rest after a moment."""
        until = self._loop.time() + self._wait
        for job in jobs:
            job.deadline = until
        super().start(jobs)

    def start_retry(self, job: Job) -> None:
        """Run this leased retry as room allows, with those that are claimed after it."""
        job.deadline = self._loop.time() + self._wait
        self._claimed += 1
        self._retries.append(job)
        if len(self._retries) >= self._size:
            self._fill()
        else:
            self._fill_at(job.deadline)

    def _fill(self) -> None:
        while self.running < self.limit and not self.resting:
            jobs = self._next()
            if not jobs:
                return
            batch = Batch(jobs, self.decide)
            self._begin(batch)
            for job in jobs:
                job.task = batch.task

    def _next(self) -> list[Job]:
        while self._halves:
            if jobs := [job for job in self._halves.popleft() if not job.closed]:
                return jobs
        ends = [queue[0].deadline for queue in (self._retries, self._waiting) if queue]
        if not ends:
            return []
        if len(self._retries) + len(self._waiting) < self._size and min(ends) > self._loop.time():
            self._fill_at(min(ends))
            return []
        jobs = []
        while len(jobs) < self._size and (queue := self._turn()):
            job = queue.popleft()
            if job.closed:
                continue
            if job.crashes and jobs:
                queue.appendleft(job)
                break
            jobs.append(job)
            if job.crashes:
                break
        return jobs

    def _fill_at(self, moment: float) -> None:
        # Not by the handle's own time: uvloop's has none for a moment that is over already.
        if self._alarm is None or self._alarm_at > moment:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm, self._alarm_at = self._loop.call_at(moment, self._alarmed), moment

    def _alarmed(self) -> None:
        self._alarm = None
        self._fill()

    # A run and its end

    async def _attempt(self, batch: Job) -> None:
        assert isinstance(batch, Batch)
        try:
            if batch.jobs[0].crashes:
                # It is alone.
                await self._recorder.begins(batch.jobs[0])
            recorded = await self._run(batch)
        except BaseException as error:
            self._left(batch)
            self._settle(batch)
            if not batch.closed and batch.cause not in ("lost", "stop"):
                self._fail(batch, error)
        else:
            self._left(batch)
            self._settle(batch)
            if not batch.closed:
                self._finish(batch, recorded)
        self._fill()

    def _settle(self, batch: Batch) -> None:
        for job in batch.settled:
            self._end(job, None)

    def _finish(self, batch: Batch, recorded: bool) -> None:
        for job, outcome in batch.outcomes:
            if job in batch.errors and not job.closed:
                self._tell(job, outcome, batch.errors[job])
            self._end(job, None if recorded else outcome)
            if recorded and isinstance(outcome, Retry | Snoozed):
                self.next_due = min(self.next_due, self._loop.time() + (outcome.delay or 0.0))

    def _fail(self, batch: Job, error: BaseException) -> None:
        assert isinstance(batch, Batch)
        if batch.fail(error):
            self._finish(batch, False)
            return
        jobs = [job for job in batch.jobs if not job.closed]
        self._log.warning("batch.divided", events=len(jobs), error=type(error).__name__)
        self._halves.extend(halves(jobs))

    def lose(self, job: Job) -> None:
        """The lease of this delivery is another worker's now. Its batch goes on for the others."""
        super().lose(job)
        for run in list(self._running):
            if isinstance(run, Batch) and job in run.jobs and all(other.closed for other in run.jobs):
                self.interrupt(run, "lost")

    # Stop

    def take_back(self) -> list[Job]:
        """What was not started, for others."""
        return super().take_back() + self._divided()

    def interrupt_all(self) -> list[Job]:
        """End every run without an outcome, and return what was running."""
        runs = [run for run in super().interrupt_all() if isinstance(run, Batch)]
        return [job for run in runs for job in run.jobs + run.settled if not job.closed] + self._divided()

    def _divided(self) -> list[Job]:
        jobs = [job for jobs in self._halves for job in jobs if not job.closed]
        self._halves.clear()
        for job in jobs:
            job.closed = True
        return jobs
