"""Heartbeats of the stream entries in flight: their leases in Redis are renewed, and those lost are noticed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from redis.exceptions import ResponseError

from workers.lane import Source
from workers.link import Redis, Script, Servers, Unreachable, by_server

HANDED_BACK_IDLE = 30 * 24 * 3600 * 1000
"""Milliseconds: idle for longer than anybody's lease."""

CHUNK = 500
"""Entries that one command names at most."""


class Renewal:
    """The leases of a worker's stream entries; `heartbeat` is in seconds."""

    def __init__(self, sources: list[Source], servers: Servers, *, name: str, heartbeat: float, log: Any) -> None:
        self._sources = sources
        self._servers = servers
        self._script = Script(servers, "renew")
        self._name = name
        self._heartbeat = heartbeat
        self._log = log
        self.trimmed: dict[Source, set[bytes]] = {}
        """Entries that their stream was trimmed past, and that need another lease."""
        self.gone: dict[Source, set[bytes]] = {}
        """Entries that are pending no more, although their runs go on: taken over, or forgotten by Redis."""
        self.found = asyncio.Event()
        """Set when there are such entries."""

    async def keep(self) -> None:
        """Renew them until cancelled: one exchange with each server that has any."""
        renewing: dict[Redis, asyncio.Task[None]] = {}
        # A server that does not answer keeps those of the others from nothing.
        async with asyncio.TaskGroup() as tasks:
            while True:
                await asyncio.sleep(self._heartbeat)
                try:
                    groups = by_server(self._servers, ((each.key, each) for each in self._sources if each.inflight))
                except Unreachable as error:
                    self._log.warning("lease.not_renewed", error=type(error).__name__)
                    continue
                renewing = {client: task for client, task in renewing.items() if not task.done()}
                for client, keyed in groups.items():
                    if client not in renewing:
                        renewing[client] = tasks.create_task(self._renew(client, [source for _, source in keyed]))

    async def _renew(self, client: Redis, sources: list[Source]) -> None:
        calls: list[tuple[Callable[[Source, list[bytes], Any], None], Source, list[bytes]]] = []
        commands: list[tuple[str | bytes | int, ...]] = []
        for source in sources:
            held = [entry_id for entry_id, job in source.inflight.items() if job.lease is not None]
            if held:
                calls.append((self._acknowledged, source, held))
                commands.append(("XACK", source.key, source.lane.name, *held))
            ids = [entry_id for entry_id, job in source.inflight.items() if job.lease is None]
            for start in range(0, len(ids), CHUNK):
                chunk = ids[start : start + CHUNK]
                calls.append((self._renewed, source, chunk))
                commands.append(self._script.words(source.key, source.lane.name, self._name, 0, *chunk))
        try:
            replies = await self._script.exchange(client, commands)
        except Unreachable as error:
            self._log.warning("lease.not_renewed", streams=len(sources), error=type(error).__name__)
            return
        failed: dict[Source, ResponseError] = {}
        for (take_in, source, ids), reply in zip(calls, replies, strict=True):
            if not isinstance(reply, ResponseError):
                take_in(source, ids, reply)
            elif "NOGROUP" not in str(reply):
                failed[source] = reply
        for source, refused in failed.items():
            self._log.warning("lease.not_renewed", stream=source.key, error=str(refused))

    async def give_back(self, source: Source, ids: list[bytes]) -> list[bytes]:
        """Let others have these entries at once. Returns those that the stream was trimmed past, which stay pending
        here: nobody could read what they were."""
        kept: list[bytes] = []
        for start in range(0, len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]
            _, trimmed, _ = await self._script(source.key, source.lane.name, self._name, HANDED_BACK_IDLE, *chunk)
            kept += trimmed
        return kept

    def _acknowledged(self, source: Source, ids: list[bytes], reply: Any) -> None:
        for entry_id in ids:
            if (job := source.inflight.pop(entry_id, None)) is not None:
                job.source = None

    def _renewed(self, source: Source, ids: list[bytes], reply: Any) -> None:
        lost, trimmed, gone = reply
        for entry_id in lost:
            job = source.inflight.get(entry_id)
            if job is not None and not job.closed:
                source.lane.lose(job)
        # Not here: while PostgreSQL is away leases in Redis must be renewed.
        if trimmed:
            self.trimmed.setdefault(source, set()).update(trimmed)
            self.found.set()
        if gone := [each for each in gone if (job := source.inflight.get(each)) is not None and not job.closed]:
            self.gone.setdefault(source, set()).update(gone)
            self.found.set()
