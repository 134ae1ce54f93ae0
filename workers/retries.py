"""Retries, driven from PostgreSQL: claimed when they are due, as many as there is room for."""

from __future__ import annotations

import asyncio
from typing import Any

from workers.database import Database, array
from workers.delivery import Recorder
from workers.job import Job
from workers.lane import Lane
from workers.outcome import MAX_CRASHES

SOON = 0.001
"""Seconds: a due time is met a little late rather than a little early."""


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
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def wake(self) -> None:
        """Look again: room was made, or something is due earlier."""
        self._wake.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            self._wake.clear()
            now = self._loop.time()
            open_lanes = [lane for lane in self._lanes.values() if not lane.paused and lane.retry_room() > 0]
            due = [lane for lane in open_lanes if lane.next_due <= now]
            if due:
                await self.claim(due)
                continue
            earliest = min((lane.next_due for lane in open_lanes), default=now + 1)
            try:
                async with asyncio.timeout(min(1.0, earliest - now) + SOON):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def claim(self, lanes: list[Lane]) -> None:
        """Take what is due for these lanes and start it."""
        rooms = {lane.name: lane.retry_room() for lane in lanes}
        now = self._loop.time()
        for lane in lanes:
            lane.next_due = now + 1.0
        rows = await self._database.fetch(
            "claim",
            {
                "handlers": array(list(rooms)),
                "limits": array([str(room) for room in rooms.values()]),
                "lease": self._lease,
            },
        )
        taken = dict.fromkeys(rooms, 0)
        for row in rows:
            taken[row[1]] += 1
            await self._start(row)
        for lane in lanes:
            if taken[lane.name] >= rooms[lane.name]:
                lane.next_due = self._loop.time()

    async def _start(self, row: Any) -> None:
        event_id, handler, at, attempts, crashes, lease, name, key, payload, headers = row
        lane = self._lanes[handler]
        job = Job(lane, event_id, at, name or lane.handler.event_name, key or "", payload or "null", headers or "")
        job.attempt = attempts + 1
        job.crashes = crashes
        job.lease = lease
        if payload is None:
            await self._bury(job, "the event is gone: its partition was dropped before this retry")
        elif crashes >= MAX_CRASHES:
            await self._bury(job, "its worker died three times while it ran")
        elif lane.stopping or lane.active.setdefault(event_id, job) is not job:
            # It still runs here as a first attempt: one run at a time.
            await self._database.fetch("finish_retry", _given_back(job))
        else:
            lane.start_retry(job)

    async def _bury(self, job: Job, error: str) -> None:
        self._log.error("delivery.dead", handler=job.lane.name, event_id=job.event_id, attempt=job.attempt, error=error)
        await self._recorder.bury(job, error, cost=0)


def _given_back(job: Job) -> dict[str, Any]:
    return {
        "ids": array([job.event_id]), "handlers": array([job.lane.name]), "ats": array([str(job.at)]),
        "leases": array([str(job.lease)]), "costs": [0], "delays": [1.0], "errors": [None],
    }  # fmt: skip
