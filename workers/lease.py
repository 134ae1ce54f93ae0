"""Leases: keeping what this worker holds, taking over what a dead one left, and handing back."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from redis.exceptions import ResponseError

from outbox.failpoints import reach
from workers.database import Database
from workers.delivery import Recorder, beginnings, given_back, keys, leases
from workers.job import Job, from_entry
from workers.lane import Lane, Source
from workers.link import Script, Servers, Unreachable, by_server, command, exchange
from workers.once import Mark
from workers.renewal import CHUNK, HANDED_BACK_IDLE, Renewal

T = TypeVar("T")

FORGET_AFTER = 60.0
"""Seconds after which an idle consumer without pending entries is removed."""

LEFT = "the worker died or was cut off before this event had an outcome"


class Leases:
    """The leases of everything in flight in one worker; `lease` and `heartbeat` are in seconds."""

    def __init__(
        self,
        lanes: dict[str, Lane],
        sources: list[Source],
        *,
        servers: Servers,
        database: Database,
        recorder: Recorder,
        name: str,
        lease: float,
        heartbeat: float,
        log: Any,
    ) -> None:
        self._lanes = lanes
        self._sources = sources
        self._servers = servers
        self._database = database
        self._recorder = recorder
        self._name = name
        self._lease = lease
        self._heartbeat = heartbeat
        self._log = log
        self._leave = Script(servers, "leave")
        self.entries = Renewal(sources, servers, name=name, heartbeat=heartbeat, log=log)
        self._left_running: Counter[tuple[Source, bytes]] = Counter()
        """How many entries of each dead worker were taken over in this minute."""
        self._loop = asyncio.get_running_loop()

    # Heartbeat

    async def keep_retries(self) -> None:
        """Renew the leases of claimed retries until cancelled; ask PostgreSQL about entries where only it knows."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat):
                    await self.entries.found.wait()
            self.entries.found.clear()
            while self.entries.trimmed:
                await self._hold(*self.entries.trimmed.popitem())
            while self.entries.gone:
                await self._lose_taken(*self.entries.gone.popitem())
            leased = [job for lane in self._lanes.values() for job in lane.active.values() if job.lease]
            if marked := [job for job in leased if isinstance(job.lease, Mark)]:
                await self._database.fetch("renew_once", keys(marked) | beginnings(marked) | {"term": self._lease})
            held = [job for job in leased if not isinstance(job.lease, Mark)]
            if not held:
                continue
            rows = await self._database.fetch("renew", keys(held) | leases(held) | {"lease": self._lease})
            standing = {row[0] for row in rows}
            for job in held:
                if job.lease not in standing and not job.closed:
                    job.lane.lose(job)

    async def _lose_taken(self, source: Source, ids: set[bytes]) -> None:
        """End the runs of entries that another worker took over and acknowledged, or that the sweep took for lost:
        these have a row. Those that Redis forgot have none, and go on."""
        found = [source.inflight[entry_id] for entry_id in ids if entry_id in source.inflight]
        jobs = [job for job in found if not job.closed]
        if not jobs:
            return
        taken = {row[0] for row in await self._database.fetch("standing", keys(jobs))}
        for event_id in taken:
            # The one that runs, if this was its entry on the other stream.
            job = source.lane.active.get(event_id)
            if job is not None and job.lease is None and not job.closed:
                source.lane.lose(job)

    async def _hold(self, source: Source, ids: set[bytes]) -> None:
        """Exchange the leases of entries that the stream was trimmed past for leases in PostgreSQL.

        Redis would forget these entries at the next XCLAIM of anybody, and the sweep would take them for lost. They are
        acknowledged when their stream is looked at again: this must not wait for Redis.
        """
        async with self._recorder.between_batches:
            found = [source.inflight[entry_id] for entry_id in ids if entry_id in source.inflight]
            jobs = [job for job in found if job.lease is None and source.lane.active.get(job.event_id) is job]
            if not jobs:
                return
            granted: dict[str, str] = {}

            async def hold(jobs: list[Job]) -> None:
                granted.update(await self._database.write("hold", keys(jobs) | {"lease": self._lease}))

            refused = await self._recorder.each(hold, jobs)
            # Those are named by the next heartbeat again.
            jobs = [job for number, job in enumerate(jobs) if number not in refused]
            reach("worker.held")
            held = [job for job in jobs if job.event_id in granted]
            for job in held:
                job.lease = granted[job.event_id]
        self._log.info("lease.moved", stream=source.key, handler=source.lane.name, entries=len(held))
        for job in jobs:
            if job.lease is None and job.task is None and not job.closed:
                # PostgreSQL drives it, or knows its outcome.
                job.closed = True
                self._recorder.add(job, None)

    # What others left

    async def take_over(self) -> None:
        """Look for entries whose worker is gone, until cancelled: PostgreSQL drives them from then on."""
        forget_at = 0.0
        while True:
            forget = self._loop.time() >= forget_at
            if forget:
                forget_at = self._loop.time() + FORGET_AFTER
                self._left_running.clear()
            for source in self._sources if forget else await self._left():
                try:
                    while await self._reclaim(source) == CHUNK:
                        pass
                    if forget:
                        await self._forget_consumers(source)
                except ResponseError as error:
                    if "NOGROUP" not in str(error) and "no such key" not in str(error):
                        self._log.warning("reclaim.failed", stream=source.key, error=str(error))
                except Unreachable as error:
                    self._log.warning("reclaim.failed", stream=source.key, error=type(error).__name__)
                    # When Redis is back, the living must get to renew their leases first.
                    await asyncio.sleep(2 * self._heartbeat)
            await asyncio.sleep(self._lease / 4)

    async def _left(self) -> list[Source]:
        """The streams of which somebody holds entries longer than a lease. Mostly none, so all are asked together."""
        found: list[Source] = []
        idle = int(self._lease * 1000)
        groups = by_server(self._servers, ((source.key, source) for source in self._sources))
        for client, keyed in groups.items():
            sources = [source for _, source in keyed]
            try:
                replies = await exchange(
                    client,
                    [("XPENDING", each.key, each.lane.name, "IDLE", idle, "-", "+", 1) for each in sources],
                )
            except Unreachable as error:
                self._log.warning("reclaim.failed", stream=sources[0].key, error=type(error).__name__)
                await asyncio.sleep(2 * self._heartbeat)
                continue
            # Errors are looked at one by one, but for those that only say that nothing can be held.
            found += [
                each for each, reply in zip(sources, replies, strict=True) if reply and "NOGROUP" not in str(reply)
            ]
        return found

    async def _reclaim(self, source: Source) -> int:
        idle = int(self._lease * 1000)
        group = source.lane.name
        client = self._servers.at(source.key)
        pending = await command(client, "XPENDING", source.key, group, "IDLE", idle, "-", "+", CHUNK)
        stale = {entry[0]: entry[2] for entry in pending if entry[0] not in source.inflight}
        if not stale:
            return 0
        claimed = await command(client, "XCLAIM", source.key, group, self._name, idle, *stale, "JUSTID")
        # Redis 7 drops entries that were trimmed from the pending list and from the reply; 6.2 returns them.
        dropped = [entry_id for entry_id in stale if entry_id not in claimed] if len(claimed) < len(stale) else []
        gone = await self._still_absent(source, dropped)
        jobs: list[Job] = []
        broken: list[bytes] = []
        pipeline = self._servers.at(source.key).pipeline(transaction=False)
        for entry_id in claimed:
            pipeline.execute_command("XRANGE", source.key, entry_id, entry_id)
        for entry_id, found in zip(claimed, await pipeline.execute() if claimed else [], strict=True):
            if not found or found[0] is None or found[0][1] is None:
                gone.append(entry_id)
                continue
            job = from_entry(source.lane, source, entry_id, found[0][1])
            if job is None:
                broken.append(entry_id)
            else:
                jobs.append(job)
        ran = self._may_have_run(source, [entry for entry in pending if entry[0] in claimed])
        crashed = {job.event_id for job in jobs if job.entry_id in ran}
        jobs = await self._taken(partial(self._retry, crashed), jobs)
        gone = await self._taken(partial(self._adopt, source.lane), gone)
        acknowledged = [job.entry_id for job in jobs] + gone + broken
        if acknowledged:
            reach("worker.taken_over")
            await self._recorder.acknowledge_entries({source: acknowledged})
            source.lane.next_due = self._loop.time()
            self._log.warning(
                "lease.taken_over", stream=source.key, handler=group, entries=len(acknowledged), trimmed=len(gone)
            )
        return len(pending)

    def _may_have_run(self, source: Source, pending: list[Any]) -> set[bytes]:
        """Of what each dead worker held the first entries, as many as a lane runs at once: it begins them in their
        order, and has not begun the others."""
        ran: set[bytes] = set()
        most = source.lane.capacity * (source.lane.handler.batch or 1)
        for entry_id, consumer, idle, _ in pending:
            if idle >= HANDED_BACK_IDLE:
                continue
            self._left_running[source, consumer] += 1
            if self._left_running[source, consumer] <= most:
                ran.add(entry_id)
        return ran

    async def _taken(self, write: Callable[[list[T]], Awaitable[None]], items: list[T]) -> list[T]:
        """Those that PostgreSQL took. The others are not acknowledged, and found again after another lease."""
        if not items:
            return []
        refused = await self._recorder.each(write, items)
        for why in refused.values():
            self._log.warning("reclaim.refused", error=str(why))
        return [item for number, item in enumerate(items) if number not in refused]

    async def _retry(self, crashed: set[str], jobs: list[Job]) -> None:
        crashes = [int(job.event_id in crashed) for job in jobs]
        errors = [LEFT if crash else None for crash in crashes]
        counts = {"attempts": crashes, "crashes": crashes, "delays": [0.0] * len(jobs)}
        await self._database.write("retry", keys(jobs) | counts | {"errors": errors})

    async def _adopt(self, lane: Lane, entries: list[bytes]) -> None:
        found = {"seqs": [int(entry_id.partition(b"-")[2]) for entry_id in entries], "error": LEFT}
        names = {"handler": lane.name, "event_name": lane.handler.event_name}
        await self._database.write("adopt", found | names)

    async def _still_absent(self, source: Source, ids: list[bytes]) -> list[bytes]:
        """Those of `ids` that are in the stream no more; the others were claimed by somebody faster."""
        if not ids:
            return []
        pipeline = self._servers.at(source.key).pipeline(transaction=False)
        for entry_id in ids:
            pipeline.execute_command("XRANGE", source.key, entry_id, entry_id)
        return [entry_id for entry_id, found in zip(ids, await pipeline.execute(), strict=True) if not found]

    async def _forget_consumers(self, source: Source) -> None:
        consumers = await command(self._servers.at(source.key), "XINFO CONSUMERS", source.key, source.lane.name)
        for consumer in consumers:
            facts = dict(zip(consumer[0::2], consumer[1::2], strict=False))
            if (
                facts[b"pending"] == 0
                and facts[b"idle"] > FORGET_AFTER * 1000
                and facts[b"name"] != self._name.encode()
            ):
                await self._leave(source.key, source.lane.name, facts[b"name"])

    # Leaving

    async def hand_back(self, jobs: list[Job]) -> None:
        """Let others have these deliveries at once. They cost no attempt, and are no crash."""
        # Redis or PostgreSQL may be away, and the other not.
        ended = await asyncio.gather(
            self._give_entries_back(jobs), self._give_retries_back(jobs), return_exceptions=True
        )
        for error in ended:
            if error is not None:
                raise error
        for job in jobs:
            job.lane.release(job)

    async def _give_entries_back(self, jobs: list[Job]) -> None:
        entries: dict[Source, dict[bytes, Job]] = {}
        for job in jobs:
            for source, entry_id in job.entries():
                entries.setdefault(source, {})[entry_id] = job
        trimmed: dict[Source, list[bytes]] = {}
        for source, held in entries.items():
            with contextlib.suppress(ResponseError):
                trimmed[source] = await self.entries.give_back(source, list(held))
        for source, ids in trimmed.items():
            # PostgreSQL drives what the stream was trimmed past: whoever claimed it would find nothing.
            left = [entries[source][entry_id] for entry_id in ids]
            if left and await self._taken(partial(self._retry, set()), left) == left:
                await self._recorder.acknowledge_entries({source: ids})

    async def _give_retries_back(self, jobs: list[Job]) -> None:
        # The dead letter of a run that must not be repeated is its outcome.
        leased = [job for job in jobs if job.lease is not None and not isinstance(job.lease, Mark)]
        if leased:
            # One whose row is held keeps no other: its lease ends by itself.
            await self._recorder.each(self._give_back, leased)

    async def _give_back(self, jobs: list[Job]) -> None:
        await self._database.write("finish_retry", given_back(jobs))

    async def leave(self) -> None:
        """Remove this worker's consumers, if nothing is pending on them."""
        for source in self._sources:
            try:
                await self._leave(source.key, source.lane.name, self._name)
            except ResponseError:
                continue
