"""Broken variants of the protocol, as what to put in the place of what. The model is to find each of them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from outbox.position import Position
from relay.snapshot import Snapshot
from tests.chaos.model.postgres import Postgres, Transaction
from tests.chaos.model.streams import Fields, Redis
from tests.chaos.model.world import World
from workers.delivery import Recorder
from workers.job import Job
from workers.lane import Source

_record = Recorder._record
_insert = Postgres.insert
_create_group = Redis.create_group


async def _acknowledge_first(self: Recorder, batch: list[tuple[Job, Any]]) -> None:
    entries: dict[Source, list[bytes]] = defaultdict(list)
    for job, _ in batch:
        for source, entry_id in job.entries():
            entries[source].append(entry_id)
    await self.acknowledge_entries(entries)
    await _record(self, batch)


def _numbered(self: Postgres, transaction: Transaction, *facts: str) -> None:
    _insert(self, transaction, *facts)
    transaction.events[-1].xid = transaction.events[-1].seq


def _highest(self: Postgres) -> Snapshot:
    upto = max((event.seq for event in self.events.values()), default=0) + 1
    return Snapshot(upto, upto)


def _at_the_end(self: Redis, key: str, name: str, start: str) -> None:
    _create_group(self, key, name, "$")


def _without_row(world: World, transaction: Transaction, job: Job) -> None:
    world.postgres.commit(transaction)


async def _never(self: Any) -> None:
    await asyncio.Future()


def _server_ids(self: Redis, key: str, expected: bytes, entries: list[tuple[bytes, Fields]]) -> bytes:
    for _, fields in entries:
        last = self.streams[key].last if key in self.streams else Position(0, 0)
        self.add(key, max(Position(int(self._now() * 1000), 0), Position(last.tick, last.seq + 1)), fields)
    return entries[-1][0]


_MODEL = "tests.chaos.model"

MUTANTS: dict[str, dict[str, Any]] = {
    "acknowledged before the outcome is written": {"workers.delivery.Recorder._record": _acknowledge_first},
    "a cursor over seq in place of snapshots": {
        f"{_MODEL}.postgres.Postgres.insert": _numbered,
        f"{_MODEL}.postgres.Postgres.snapshot": _highest,
    },
    "groups made at the end of their stream": {f"{_MODEL}.streams.Redis.create_group": _at_the_end},
    "no delivery row with the effect": {f"{_MODEL}.working.commit": _without_row},
    "nobody takes over what a dead worker left": {"workers.lease.Leases.take_over": _never},
    "entries under ids of the server's own": {f"{_MODEL}.streams.Redis.append": _server_ids},
}
