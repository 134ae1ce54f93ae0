"""Retries, driven from PostgreSQL: claimed when they are due, as many as there is room for."""

from __future__ import annotations

import asyncio
from typing import Any

from outbox.failpoints import reach
from workers import prefetch
from workers.database import Database, array
from workers.delivery import Recorder, given_back
from workers.errors import RowRefusedError
from workers.job import Job
from workers.lane import Lane
from workers.outcome import MAX_CRASHES

SOON = 0.001
"""Seconds: a due time is met a little late rather than a little early."""

LOOK_EVERY = 1.0
"""Seconds between two looks at what is due, if nothing is known to be due before."""

LATER = 1.0
"""Seconds until a delivery that cannot run here now is due again."""

SUSPECT = MAX_CRASHES - 1
"""Deaths of its worker after which a delivery is suspected to be their cause."""


class Retries:
    """Claims due retries of this worker's handlers. Each lane's `next_due` says when to look."""

    def __init__(
        self, lanes: dict[str, Lane], *, database: Database, recorder: Recorder, lease: float, log: Any
    ) -> None:
        self._lanes = lanes
        self._database = database
        self._recorder = recorder
        self._lease = lease
        self._log = log
        self._suspect: Job | None = None
        self._stopping = False
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def wake(self) -> None:
        """Look again: room was made, or something is due earlier."""
        self._wake.set()

    def stop(self) -> None:
        """Claim no more. `run` ends when what was claimed is with its lane, or given back."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Serve until stopped."""
        while not self._stopping:
            self._wake.clear()
            now = self._loop.time()
            if self._suspect is not None and not self._suspect_runs():
                # The next one need not wait.
                self._suspect = None
                for lane in self._lanes.values():
                    lane.next_due = now
            open_lanes = [lane for lane in self._lanes.values() if not lane.paused and lane.retry_room() > 0]
            rooms = self._rooms([lane for lane in open_lanes if lane.next_due <= now])
            if rooms:
                await self.claim(rooms)
                continue
            earliest = min((lane.next_due for lane in open_lanes if lane.next_due > now), default=now + LOOK_EVERY)
            try:
                async with asyncio.timeout(min(LOOK_EVERY, earliest - now) + SOON):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _rooms(self, due: list[Lane]) -> dict[Lane, int]:
        """How many to claim of each, the one that waited longest first."""
        due.sort(key=lambda lane: lane.next_due)
        granted = prefetch.shares(
            ((lane.retry_room(), lane.held, not lane.active) for lane in due),
            sum(lane.held for lane in self._lanes.values()),
        )
        return {lane: room for lane, room in zip(due, granted, strict=True) if room}

    async def claim(self, rooms: dict[Lane, int]) -> None:
        """Take what is due for these lanes, as many as there is room for, and start it."""
        now = self._loop.time()
        for lane in rooms:
            lane.next_due = now + LOOK_EVERY
        rows = await self._database.fetch(
            "claim",
            {
                "handlers": array([lane.name for lane in rooms]),
                "limits": array([str(room) for room in rooms.values()]),
                "lease": self._lease,
                # While one runs no other may even be claimed: it would die with this process unseen.
                "suspects": not self._suspect_runs(),
                "suspect": SUSPECT,
            },
        )
        if rows:
            reach("worker.claimed")
        taken = dict.fromkeys(rooms, 0)
        ready: list[Job] = []
        refused: list[Job] = []
        delays: list[float] = []
        for job in map(self._job, rows):
            taken[job.lane] += 1
            if not job.payload:
                await self._bury(job, "the event is gone: its partition was dropped before this retry")
            elif job.crashes >= MAX_CRASHES:
                await self._bury(job, "its worker died three times while it ran")
            elif (delay := self._put_off(job)) is None:
                ready.append(job)
            else:
                refused.append(job)
                delays.append(delay)
        # Before anything starts: what a suspect takes down with it must not look as if it had run, too.
        if refused:
            await self._database.fetch("finish_retry", given_back(refused, delays))
        last: dict[Lane, Job] = {}
        for job in ready:
            job.lane.start_retry(job)
            job.lane.held += len(job.payload)
            last[job.lane] = job
        for lane, job in last.items():
            if taken[lane] >= rooms[lane]:
                lane.measure(job, now)
        for lane, room in rooms.items():
            if taken[lane] >= room:
                lane.next_due = self._loop.time()

    def _put_off(self, job: Job) -> float | None:
        """In how many seconds it is due again; None if it runs here now: not while it still runs here as a first
        attempt, and of those whose worker died `SUSPECT` times one at a time. Else one poisonous event could take its
        neighbours down as often as itself."""
        if job.lane.resting or job.event_id in job.lane.active:
            return LATER
        if job.crashes >= SUSPECT:
            if self._suspect_runs():
                # Of this worker they are claimed when that is over, and another one may have them now.
                return 0.0
            self._suspect = job
        job.lane.active[job.event_id] = job
        return None

    def _suspect_runs(self) -> bool:
        job = self._suspect
        return job is not None and job.lane.active.get(job.event_id) is job

    def _job(self, row: Any) -> Job:
        event_id, handler, at, attempts, crashes, lease, name, key, payload, headers = row
        lane = self._lanes[handler]
        job = Job(lane, event_id, at, name or lane.handler.event_name, key or "", payload or "", headers or "")
        job.attempt = attempts + 1
        job.crashes = crashes
        job.lease = lease
        job.claimed = True
        return job

    async def _bury(self, job: Job, error: str) -> None:
        self._log.error("delivery.dead", handler=job.lane.name, **job.facts(), error=error)
        try:
            await self._recorder.bury(job, error, cost=0)
        except RowRefusedError as refused:
            # Its lease ends, and it is claimed again.
            self._log.error("delivery.refused", handler=job.lane.name, **job.facts(), error=str(refused))
