"""Reading streams: doorbells, one for all streams that one command may name, then group reads for those that rang."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from redis.exceptions import RedisError, ResponseError

from outbox.entry import from_microseconds
from outbox.failpoints import reach
from outbox.position import Position
from workers import expiry, prefetch
from workers.database import Database, array
from workers.delivery import Recorder
from workers.doorbell import Doorbell
from workers.job import Job, from_entry
from workers.lane import Lane, Source
from workers.link import Redis, Servers, Unreachable, by_server, exchange
from workers.outcome import Expired

T = TypeVar("T")

BLOCK = 2.0
"""Seconds the doorbell waits."""

LOOK_EVERY = 5.0
"""Seconds after which every stream is looked at, whatever the doorbell says."""

LISTEN_AGAIN = 0.2
"""Seconds after which the main stream of a detached handler may ring again."""

AHEAD_FOR = 0.1
"""Seconds after which an answer that was asked for ahead of its entry is old: by then another worker may have finished
the event, which was on another stream too."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """What is asked about an entry before the group read gives it, if it does."""

    entry_id: bytes
    seen: asyncio.Task[tuple[set[str], int]] | None


class Consumer:
    """Feeds the lanes from their streams. `refresh` reads the handlers' rows when a stream says they changed."""

    def __init__(
        self,
        lanes: list[Lane],
        sources: list[Source],
        *,
        servers: Servers,
        database: Database,
        up: asyncio.Event,
        recorder: Recorder,
        name: str,
        refresh: Any,
        log: Any,
    ) -> None:
        self._lanes = lanes
        self._sources = sources
        self._turns = deque(sources)
        self._servers = servers
        self._database = database
        self._up = up
        self._recorder = recorder
        self._name = name
        self._refresh = refresh
        self._log = log
        self._wake = asyncio.Event()
        self._bells: dict[int, Doorbell] = {}
        self._quiet_until = 0.0
        self._loop = asyncio.get_running_loop()
        self._admitting: set[asyncio.Task[Any]] = set()
        self._error: BaseException | None = None
        self._stopping = False

    def wake(self) -> None:
        """Look again: room was made, or a handler's row changed."""
        self._wake.set()

    def look_everywhere(self) -> None:
        """Read every stream once more, whatever the doorbell says."""
        for source in self._sources:
            source.ready = True
        self._wake.set()

    def stop(self) -> None:
        """Read no more. `run` ends when what was read is with the lanes."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Serve until stopped. Raises what made it impossible to take in what was read."""
        look_at = self._loop.time() + LOOK_EVERY
        try:
            while not self._stopping:
                if self._error is not None:
                    raise self._error
                if self._loop.time() >= look_at:
                    look_at = self._loop.time() + LOOK_EVERY
                    self.look_everywhere()
                self._wake.clear()
                await self._up.wait()
                wanted = self._wanted()
                try:
                    if wanted:
                        await self._read(wanted)
                        # Until the lanes know what was read, they would have room for it once more.
                        await asyncio.sleep(0)
                    else:
                        await self._listen(look_at)
                except Unreachable as error:
                    self._log.warning("redis.lost", error=type(error).__name__)
                    await self._hang_up()
                    await asyncio.sleep(0.2)
                    self.look_everywhere()
            if self._admitting:
                await asyncio.wait(self._admitting)
        finally:
            # Cancelled, or failed: what PostgreSQL does not answer would be asked for ever.
            for task in self._admitting:
                task.cancel()
            await self._hang_up()

    def _wanted(self) -> list[tuple[Source, int]]:
        """What to read, and how many entries of each."""
        asking = [(source, source.lane.room()) for source in self._turns if source.ready and source.open]
        asking = [(source, room) for source, room in asking if room]
        if not asking:
            return []
        counts = prefetch.shares(
            ((min(room, source.step), source.lane.held, not source.lane.active) for source, room in asking),
            sum(lane.held for lane in self._lanes),
        )
        wanted = [(source, count) for (source, _), count in zip(asking, counts, strict=True) if count]
        if len(wanted) < len(asking):
            # Another one is first the next time.
            self._turns.rotate(-1 - self._turns.index(asking[0][0]))
        return wanted

    # Reading

    async def _read(self, wanted: list[tuple[Source, int]]) -> None:
        groups = by_server(self._servers, ((source.key, (source, count)) for source, count in wanted))
        if len(groups) == 1:
            await self._read_at(next(iter(groups)), wanted)
            return
        reads = [self._read_at(client, [pair for _, pair in keyed]) for client, keyed in groups.items()]
        for failed in await asyncio.gather(*reads, return_exceptions=True):
            # Only now: what the other servers gave is taken in.
            if failed is not None:
                raise failed

    async def _read_at(self, client: Redis, wanted: list[tuple[Source, int]]) -> None:
        ahead = {source: self._ask_ahead(source) for source, _ in wanted if source.rung}
        commands: list[tuple[str | bytes | int, ...]] = []
        for source, count in wanted:
            name = source.lane.name
            commands.append(("XREADGROUP", "GROUP", name, self._name, "COUNT", count, "STREAMS", source.key, ">"))
            commands.append(("XINFO", "GROUPS", source.key))
        began = self._loop.time()
        replies = await exchange(client, commands)
        in_time = self._loop.time() - began <= AHEAD_FOR
        for number, (source, count) in enumerate(wanted):
            entries, groups = replies[2 * number], replies[2 * number + 1]
            if isinstance(entries, ResponseError) and "NOGROUP" in str(entries):
                await self._heal(source)
                continue
            for reply in (entries, groups):
                if isinstance(reply, RedisError):
                    raise reply
            found = entries[0][1] if entries else []
            if source in ahead:
                source.won = bool(found) and found[0][0] == ahead[source].entry_id
            # A read that is small against the window says nothing about it.
            full = len(found) == count >= min(source.lane.window // 4, prefetch.READ // 2)
            source.step = prefetch.next_step(len(found), first=source.lane.first)
            if len(found) < count:
                source.ready = False
                source.position = _last_delivered(groups, source.lane.name.encode())
            if found:
                asked = ahead.get(source) if in_time else None
                self._start(self._admit(source, found, full=full, ahead=asked))

    def _ask_ahead(self, source: Source) -> Ahead:
        """Ask about the entry that rang while the group read is on its way; most often it is what that brings.

        A worker among many is rarely given it. It asks again after it was.
        """
        (entry_id, fields), source.rung = cast("list[Any]", source.rung), None
        job = from_entry(source.lane, source, entry_id, fields) if source.won else None
        seen = None if job is None else self._start(self._seen(source.lane, [job]))
        return Ahead(entry_id, seen)

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._admitting.add(task)
        task.add_done_callback(self._admitted)
        return task

    def _admitted(self, task: asyncio.Task[Any]) -> None:
        self._admitting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = error
            self._wake.set()

    async def _heal(self, source: Source) -> None:
        """Make a group that is missing: at 0 on the catch-up stream; on the main stream at `done_to`, if attached."""
        start = "0"
        if source.main:
            await self._refresh()
            if not source.lane.attached or source.lane.done_to is None:
                source.ready = False
                return
            start = str(source.lane.done_to)
            self._log.warning("group.healed", stream=source.key, handler=source.lane.name, start=start)
        try:
            await self._servers.at(source.key).xgroup_create(source.key, source.lane.name, id=start, mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def _admit(self, source: Source, entries: list[Any], *, full: bool, ahead: Ahead | None) -> None:
        """Run what has no outcome yet; acknowledge the rest."""
        reach("worker.read")
        lane = source.lane
        began = self._loop.time()
        jobs: list[Job] = []
        done: dict[Source, list[bytes]] = defaultdict(list)
        size = 0
        for entry_id, fields in entries:
            job = from_entry(lane, source, entry_id, fields)
            if job is None:
                self._log.error("entry.invalid", stream=source.key, entry=entry_id.decode("ascii", "replace"))
                done[source].append(entry_id)
                continue
            source.inflight[entry_id] = job
            twin = lane.active.setdefault(job.event_id, job)
            if twin is job:
                size += len(job.payload)
                jobs.append(job)
                continue
            # Only its ids are needed.
            job.payload = job.headers = ""
            if twin.source is not source or twin.entry_id != entry_id:
                twin.twins = [*(twin.twins or ()), (source, entry_id)]
        if jobs:
            lane.held += size
            if ahead is not None and ahead.seen is not None and [job.entry_id for job in jobs] == [ahead.entry_id]:
                seen, retained_from = await ahead.seen
            else:
                seen, retained_from = await self._seen(lane, jobs)
            if retained_from:
                self._refuse(lane, [job for job in jobs if job.at < retained_from and job.event_id not in seen])
            if seen:
                for job in jobs:
                    if job.event_id in seen and not job.closed:
                        job.closed = True
                        self._recorder.add(job, None)
            if full:
                lane.measure(jobs[-1], began)
            lane.start(jobs)
        if done:
            await self._recorder.acknowledge_entries(done)

    def _refuse(self, lane: Lane, jobs: list[Job]) -> None:
        """Do not run what is older than what is retained."""
        for job in jobs:
            if not job.closed:
                job.closed = True
                self._log.error("event.expired", handler=lane.name, **job.facts(), error=expiry.ERROR)
                self._recorder.add(job, Expired(expiry.ERROR))

    async def _seen(self, lane: Lane, jobs: list[Job]) -> tuple[set[str], int]:
        """Which of these have an outcome, and before when (in microseconds) outcomes may be gone."""
        rows = await self._database.fetch(
            "seen",
            {
                "ids": array([job.event_id for job in jobs]),
                "handler": lane.name,
                "first": from_microseconds(min(job.at for job in jobs)),
                "last": from_microseconds(max(job.at for job in jobs)),
            },
        )
        retained_from = max((row[1] for row in rows if row[0] is None), default=0)
        return {row[0] for row in rows if row[0] is not None}, retained_from

    # The doorbells

    def _wished(self) -> dict[str, bytes]:
        """What to listen to: every stream that was read dry, from the earliest place of those who share it; and the
        main streams of detached handlers, as a hint that they were attached."""
        wished: dict[str, bytes] = {}
        for source in self._sources:
            if source.ready or source.position is None or not source.open:
                continue
            known = wished.get(source.key)
            if known is None or Position.parse(source.position) < Position.parse(known):
                wished[source.key] = source.position
        if self._loop.time() >= self._quiet_until:
            for source in self._sources:
                if source.main and not source.lane.attached:
                    wished.setdefault(source.key, b"$")
        return wished

    async def _listen(self, until: float) -> None:
        """Wait for a doorbell or a reason to look again."""
        wished: dict[int, dict[str, bytes]] = {}
        for key, position in self._wished().items():
            wished.setdefault(self._servers.together(key), {})[key] = position
        for place, its in wished.items():
            await self._arm(place, its)
        waiter = asyncio.create_task(self._wake.wait())
        tasks = {waiter} | {bell.ring for bell in self._bells.values() if bell.ring is not None}
        try:
            await asyncio.wait(tasks, timeout=max(0.0, until - self._loop.time()), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
        await self._answer()

    async def _arm(self, place: int, wished: dict[str, bytes]) -> None:
        bell = self._bells.get(place)
        if bell is not None and bell.ring is not None and not bell.covers(wished):
            if await bell.end():
                await self._answer()
            else:
                await self._bells.pop(place).close()
                bell = None
        if bell is None:
            key = next(iter(wished))
            bell = Doorbell(self._servers.bell(key), self._servers.at(key), block=BLOCK)
            self._bells[place] = bell
        if bell.ring is None:
            bell.arm(wished)

    async def _answer(self) -> None:
        """See which streams rang."""
        rung: dict[str, list[Any]] = {}
        for bell in self._bells.values():
            if bell.ring is not None and bell.ring.done():
                rung |= bell.take()
        changed = False
        for source in self._sources if rung else ():
            if source.key in rung:
                if source.open:
                    source.ready = True
                    source.rung = rung[source.key]
                elif source.main and not source.lane.attached:
                    changed = True
        if changed:
            self._quiet_until = self._loop.time() + LISTEN_AGAIN
            await self._refresh()

    async def _hang_up(self) -> None:
        bells, self._bells = self._bells, {}
        for bell in bells.values():
            await bell.close()


def _last_delivered(groups: list[list[Any]], name: bytes) -> bytes:
    for group in groups:
        facts = dict(zip(group[0::2], group[1::2], strict=False))
        if facts.get(b"name") == name:
            return bytes(facts[b"last-delivered-id"])
    return b"0-0"
