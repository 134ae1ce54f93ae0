"""Mutants: mistakes that others have made, put into relay and workers at their start. The checker must see each.

Most would be mended within a second by the sweep, which proves every outcome by itself. So a mutant is judged without
this net: it also believes every acknowledgement. `no net` alone, which is no mutant, keeps every promise all the same
as long as Redis loses nothing; what Redis lost, only that proof finds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg

import relay.catch_up
import relay.handlers
import relay.scripts
import relay.sweep
import relay.tick
import workers.consumer
import workers.execution
import workers.lease
import workers.transaction
from relay.snapshot import Snapshot
from workers.job import Job


def no_net() -> None:
    """The sweep believes what is acknowledged."""
    relay.sweep.Sweep._fill = lambda self, connection, covered: None  # type: ignore[method-assign]


def acknowledge_before_commit() -> None:
    """The outcome is recorded before the handler runs, and its transaction commits alone."""
    no_net()
    recorded = workers.execution.Execution._transactional

    async def announced(self: workers.execution.Execution, job: Job) -> bool:
        if job.lease is None:
            facts = {"ids": f"{{{job.event_id}}}", "handlers": f"{{{job.lane.name}}}", "ats": f"{{{job.at}}}"}
            await self._database.fetch("done", facts)
        return await recorded(self, job)

    workers.execution.Execution._transactional = announced  # type: ignore[method-assign]
    written = workers.execution.Execution._write

    def write(connection: Any, job: Job, schema: str) -> None:
        if job.lease is not None:
            written(connection, job, schema)

    workers.execution.Execution._write = staticmethod(write)


def cursor_by_seq() -> None:
    """A batch is what has a higher seq than the last one published: late commits are passed over."""
    no_net()
    relay.tick.take = _take_by_seq


_BY_SEQ = """
WITH fresh AS MATERIALIZED (
  SELECT e.* FROM outbox.event AS e WHERE e.seq > (SELECT last FROM public.by_seq)
), moved AS (
  UPDATE public.by_seq SET last = (SELECT max(seq) FROM fresh) WHERE EXISTS (SELECT FROM fresh)
), taken AS (
  INSERT INTO outbox.tick (id, snapshot)
  SELECT greatest(%(floor)s::bigint, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint), pg_current_snapshot()
   WHERE EXISTS (SELECT FROM fresh)
  RETURNING id, snapshot
)
SELECT n.seq, n.id, n.name, coalesce(n.key, ''), n.payload, coalesce(n.headers::text, ''),
       (date_part('epoch', n.created_at) * 1000000)::bigint, t.id, t.snapshot::text, true
  FROM taken AS t LEFT JOIN fresh AS n ON n.name = ANY(%(names)s::text[])
 ORDER BY n.seq
"""


def _take_by_seq(
    cursor: psycopg.Cursor[Any], schema: str, last: relay.tick.Tick, floor: int, names: list[str]
) -> relay.tick.Taken | None:
    cursor.execute(
        "CREATE TABLE IF NOT EXISTS public.by_seq AS"
        " SELECT coalesce(pg_sequence_last_value('outbox.event_seq'), 0) AS last"
    )
    cursor.execute(_BY_SEQ.encode(), {"floor": max(last.id + 1, floor), "names": names})
    result = cursor.pgresult
    if result is None or not result.ntuples:
        return None
    number, snapshot = result.get_value(0, 7), result.get_value(0, 8)
    assert number is not None
    assert snapshot is not None
    tick = relay.tick.Tick(int(number), Snapshot.parse(snapshot.decode("ascii")), last.snapshot)
    return relay.tick.Taken(tick, cursor)


def group_at_the_end() -> None:
    """Groups begin with what comes next."""
    no_net()

    def make_group(client: Any, key: str, group: str, position: object, *, move: bool = False) -> None:
        if not client.exists(key) or group.encode() not in [each["name"] for each in client.xinfo_groups(key)]:
            client.xgroup_create(key, group, id="$", mkstream=True)

    relay.catch_up.make_group = make_group
    relay.sweep.make_group = make_group  # type: ignore[attr-defined]

    async def heal(self: workers.consumer.Consumer, source: Any) -> None:
        await self._servers.at(source.key).xgroup_create(source.key, source.lane.name, id="$", mkstream=True)

    workers.consumer.Consumer._heal = heal  # type: ignore[method-assign]


def no_delivery_row() -> None:
    """A handler's transaction commits without its row; the acknowledgement is all there is."""
    workers.execution.Execution._write = staticmethod(lambda connection, job, schema: None)


def no_reclaim() -> None:
    """Nobody takes over what a dead worker had been given."""
    no_net()

    async def look_away(self: workers.lease.Leases) -> None:
        await asyncio.Event().wait()

    workers.lease.Leases.take_over = look_away  # type: ignore[method-assign]


def star_ids() -> None:
    """Redis gives the stream ids."""
    no_net()
    original = relay.scripts.lua
    relay.scripts.lua = lambda name: original(name).replace("argv[i],", "'*',")  # type: ignore[assignment]


MUTANTS: dict[str, Callable[[], None]] = {
    "acknowledge before commit": acknowledge_before_commit,
    "cursor by seq": cursor_by_seq,
    "group at the end": group_at_the_end,
    "no delivery row": no_delivery_row,
    "no reclaim": no_reclaim,
    "star ids": star_ids,
}
"""Every mutant by its name."""

NET = "no net"

MIXES: dict[str, tuple[str, ...]] = {
    "acknowledge before commit": ("kill", "terminate backends"),
    "cursor by seq": ("kill",),
    "group at the end": ("destroy group",),
    "no delivery row": ("kill", "stop"),
    "no reclaim": ("kill",),
    "star ids": ("link mute", "kill"),
}
"""The kinds of faults under which a mutant's mistake does harm soon."""


def become(name: str) -> None:
    """Make this process the mutant of that name; none for an empty one."""
    if name == NET:
        no_net()
    elif name:
        MUTANTS[name]()
