"""Outcomes in PostgreSQL, in batches; then, and only then, the acknowledgement in Redis."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from outbox.failpoints import reach
from workers import expiry
from workers.crash import Crashed
from workers.database import Database, array
from workers.errors import RowRefusedError
from workers.job import Job
from workers.lane import Source
from workers.link import Servers, Unreachable, by_server, exchange
from workers.measures import Measures
from workers.once import Mark
from workers.outcome import DONE, Dead, Done, Expired, Outcome, Retry, Snoozed
from workers.patience import until_back
from workers.refusal import stand_in

BATCH = 1000

REFUSED_AGAIN = 3.0
"""Seconds until an outcome that PostgreSQL did not take is tried again."""

T = TypeVar("T")


class Recorder:
    """Takes the outcome of every attempt. While one batch is being written the next one gathers.

    Recording and acknowledging go on side by side: while Redis is away outcomes still reach PostgreSQL. An outcome that
    PostgreSQL does not take, because of what is in it or because another transaction holds its row, is set aside and
    tried again by itself: its delivery stays this worker's, and no other outcome waits for it.
    """

    def __init__(self, database: Database, servers: Servers, log: Any, measures: Measures | None = None) -> None:
        self._database = database
        self._servers = servers
        self._log = log
        self._measures = measures
        self._pending: list[tuple[Job, Outcome | None]] = []
        self._again: deque[tuple[Job, Outcome | None]] = deque()
        self._aside: dict[Job, tuple[asyncio.TimerHandle, Outcome | None]] = {}
        self._recorded: list[Job] = []
        self._open = 0
        self.recorded = 0
        """Deliveries whose attempt here is over and recorded."""
        self.wrote = asyncio.Event()
        """Set with every batch."""
        self.between_batches = asyncio.Lock()
        """Held while outcomes are being written: how is decided by the lease that a job has then."""
        self._to_record = asyncio.Event()
        self._to_acknowledge = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, job: Job, outcome: Outcome | None) -> None:
        """Record an outcome; None means that PostgreSQL holds one already."""
        self._pending.append((job, outcome))
        self._open += 1
        self._idle.clear()
        self._to_record.set()

    async def drained(self) -> None:
        """Wait until everything that was added is recorded and acknowledged. What was set aside is tried at once."""
        for job in list(self._aside):
            self._try_again(job)
        await self._idle.wait()

    async def record(self) -> None:
        """Write outcomes until cancelled."""
        while True:
            await self._to_record.wait()
            batch, self._pending = self._pending[:BATCH], self._pending[BATCH:]
            alone = [self._again.popleft()] if self._again else []
            if not self._pending and not self._again:
                self._to_record.clear()
            for entries in (batch, alone):
                if entries:
                    await self._settle(entries)

    async def _settle(self, batch: list[tuple[Job, Outcome | None]]) -> None:
        reach("worker.ran")
        async with self.between_batches:
            refused = await self.each(self._record, batch)
        reach("worker.recorded")
        if refused:
            batch = self._set_aside(batch, refused)
        if self._measures is not None:
            self._measures.recorded(batch)
        self.recorded += len(batch)
        self.wrote.set()
        jobs = [job for job, _ in batch]
        self._recorded += [job for job in jobs if job.entries()]
        self._to_acknowledge.set()
        self._release([job for job in jobs if not job.entries()])

    def _set_aside(
        self, batch: list[tuple[Job, Outcome | None]], refused: dict[int, RowRefusedError]
    ) -> list[tuple[Job, Outcome | None]]:
        """Let those that were refused come again later; the others."""
        for number, why in refused.items():
            job, outcome = batch[number]
            facts = {"handler": job.lane.name, "event_id": job.event_id, "error": str(why)}
            if why.held:
                self._log.warning("delivery.held", **facts)
            else:
                self._log.error("delivery.refused", **facts)
            later = asyncio.get_running_loop().call_later(REFUSED_AGAIN, self._try_again, job)
            self._aside[job] = later, stand_in(outcome, why)
        return [entry for number, entry in enumerate(batch) if number not in refused]

    def _try_again(self, job: Job) -> None:
        later, outcome = self._aside.pop(job)
        later.cancel()
        self._again.append((job, outcome))
        self._to_record.set()

    @staticmethod
    async def each(write: Callable[[list[T]], Awaitable[None]], items: list[T]) -> dict[int, RowRefusedError]:
        """Write these together or, when PostgreSQL refuses, one by one. Those refused, by number, and why."""
        try:
            await write(items)
            return {}
        except RowRefusedError as error:
            if len(items) == 1:
                return {0: error}
        refused: dict[int, RowRefusedError] = {}
        for number, item in enumerate(items):
            try:
                await write([item])
            except RowRefusedError as error:
                refused[number] = error
        return refused

    async def acknowledge(self) -> None:
        """XACK what was recorded until cancelled."""
        while True:
            await self._to_acknowledge.wait()
            self._to_acknowledge.clear()
            jobs, self._recorded = self._recorded, []
            entries: dict[Source, list[bytes]] = defaultdict(list)
            for job in jobs:
                for source, entry_id in job.entries():
                    entries[source].append(entry_id)
            await self.acknowledge_entries(entries)
            reach("worker.acknowledged")
            self._release(jobs)

    def _release(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.lane.release(job)
        self._open -= len(jobs)
        if not self._open:
            self._idle.set()

    async def _record(self, batch: list[tuple[Job, Outcome | None]]) -> None:
        done: list[Job] = []
        finished: list[Job] = []
        with_result: list[tuple[Job, Done]] = []
        failed: list[tuple[Job, Retry | Snoozed]] = []
        failed_again: list[tuple[Job, Retry | Snoozed]] = []
        expired: dict[str, list[Job]] = defaultdict(list)
        for job, outcome in batch:
            if outcome is DONE:
                (done if job.lease is None else finished).append(job)
            elif isinstance(outcome, Done):
                with_result.append((job, outcome))
            elif isinstance(outcome, Retry | Snoozed):
                (failed if job.lease is None else failed_again).append((job, outcome))
                job.lane.next_due = min(job.lane.next_due, asyncio.get_running_loop().time() + (outcome.delay or 0.0))
            elif isinstance(outcome, Expired) and job.lease is None:
                expired[job.lane.name].append(job)
            elif isinstance(outcome, Dead):
                await self._database.write(*dead_letter(job, outcome.reason, outcome.traceback))
        if done:
            await self._database.write("done", keys(done))
        if finished:
            await self._finish(finished)
        if with_result:
            await self._keep(with_result)
        if failed:
            await self._database.write("retry", first_failures(failed))
        if failed_again:
            await self._database.write("finish_retry", failures(failed_again))
        for handler, jobs in expired.items():
            await self._database.write("expired", expiry.parameters(jobs, handler))

    async def _finish(self, jobs: list[Job]) -> None:
        if marked := [job for job in jobs if isinstance(job.lease, Mark)]:
            await self._database.write("finish_once", keys(marked) | beginnings(marked))
        leased = [job for job in jobs if not isinstance(job.lease, Mark)]
        if leased:
            await self._database.write("finish_done", keys(leased) | leases(leased))

    async def _keep(self, done: list[tuple[Job, Done]]) -> None:
        """As `_record` does for those that left no result."""
        first = [(job, outcome) for job, outcome in done if job.lease is None]
        marked = [(job, outcome) for job, outcome in done if isinstance(job.lease, Mark)]
        leased = [(job, outcome) for job, outcome in done if not (job.lease is None or isinstance(job.lease, Mark))]
        if first:
            await self._database.write("done_with_result", results(first))
        if marked:
            proofs = beginnings([job for job, _ in marked])
            await self._database.write("finish_once_with_result", results(marked) | proofs)
        if leased:
            await self._database.write("finish_done_with_result", results(leased) | leases([job for job, _ in leased]))

    async def begins(self, job: Job) -> None:
        """Note that the run of a retry begins whose worker has died before. Waits for PostgreSQL however long."""
        await self._database.fetch(
            "begun", {"id": job.event_id, "handler": job.lane.name, "at": job.at, "lease": job.lease}
        )

    async def bury(self, job: Job, error: str, traceback: str | None = None, *, cost: int = 1) -> None:
        """Make a delivery dead, with its dead letter. Raises `RowRefusedError`."""
        name, params = dead_letter(job, error, traceback, cost=cost)
        await self._database.write(name, params)
        self.buried(job)

    def buried(self, job: Job) -> None:
        """This delivery was made dead."""
        if self._measures is not None:
            self._measures.buried(job)

    async def acknowledge_entries(self, entries: dict[Source, list[bytes]]) -> None:
        """XACK, however long Redis is away."""
        if not entries:
            return
        commands = [(source.key, ("XACK", source.key, source.lane.name, *ids)) for source, ids in entries.items()]
        try:
            await self._send(commands)
        except Unreachable:
            async for attempt in until_back(Unreachable):
                with attempt:
                    await self._send(commands)

    async def _send(self, commands: list[tuple[str, tuple[Any, ...]]]) -> None:
        for client, group in by_server(self._servers, commands).items():
            for reply in await exchange(client, [each for _, each in group]):
                if isinstance(reply, Exception):
                    raise reply


def keys(jobs: list[Job]) -> dict[str, Any]:
    """The deliveries' keys as parameters."""
    return {
        "ids": array([job.event_id for job in jobs]),
        "handlers": array([job.lane.name for job in jobs]),
        "ats": array([str(job.at) for job in jobs]),
    }


def results(done: list[tuple[Job, Done]]) -> dict[str, Any]:
    """The deliveries' keys as parameters, and their results, null for those without."""
    return keys([job for job, _ in done]) | {"results": [outcome.json for _, outcome in done]}


def leases(jobs: list[Job]) -> dict[str, Any]:
    """The deliveries' lease tokens as parameters."""
    return {"leases": array([str(job.lease) for job in jobs])}


def beginnings(jobs: list[Job]) -> dict[str, Any]:
    """What the dead letters of runs under way begin with, as parameters."""
    return {"beginnings": [job.lease.beginning for job in jobs if isinstance(job.lease, Mark)]}


def dead_letter(job: Job, error: str, traceback: str | None, *, cost: int = 1) -> tuple[str, dict[str, Any]]:
    """The statement that makes a delivery dead, and its parameters; `cost` is what a retry's attempts grow by."""
    facts = {
        "id": job.event_id, "handler": job.lane.name, "at": job.at, "error": error, "traceback": traceback,
        "name": job.name, "key": job.key or None, "payload": job.payload or "null", "headers": job.headers or None,
    }  # fmt: skip
    if job.lease is None:
        return "dead", facts
    if isinstance(job.lease, Mark):
        return "fail_once", facts | {"beginning": job.lease.beginning}
    return "finish_dead", facts | {"lease": job.lease, "cost": cost}


def given_back(jobs: list[Job], delays: list[float] | None = None) -> dict[str, Any]:
    """Parameters of `finish_retry` for leased retries that were not run, due again in so many seconds, or now, at no
    cost."""
    count = len(jobs)
    return (
        keys(jobs)
        | leases(jobs)
        | {"costs": [0] * count, "crashes": [0] * count, "delays": delays or [0.0] * count, "errors": [None] * count}
    )


def first_failures(failed: list[tuple[Job, Retry | Snoozed]]) -> dict[str, Any]:
    """Parameters of `retry` for first attempts that failed or were put off."""
    return keys([job for job, _ in failed]) | {
        "attempts": [0 if isinstance(outcome, Snoozed) else 1 for _, outcome in failed],
        "crashes": [int(isinstance(outcome, Crashed)) for _, outcome in failed],
        "delays": [outcome.delay or 0.0 for _, outcome in failed],
        "errors": [outcome.reason or None for _, outcome in failed],
    }


def failures(failed: list[tuple[Job, Retry | Snoozed]]) -> dict[str, Any]:
    """Parameters of `finish_retry` for leased retries that failed or were put off once more."""
    jobs = [job for job, _ in failed]
    return (
        keys(jobs)
        | leases(jobs)
        | {
            "costs": [0 if isinstance(outcome, Snoozed) else 1 for _, outcome in failed],
            "crashes": [int(isinstance(outcome, Crashed)) for _, outcome in failed],
            "delays": [outcome.delay or 0.0 for _, outcome in failed],
            "errors": [outcome.reason or None for _, outcome in failed],
        }
    )
