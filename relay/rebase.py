"""Restored elsewhere: a log whose ticks were taken on another server begins anew on this one.

Ticks and events carry transaction ids. After a logical restore these count from the beginning, so old ids say nothing,
or lie in the future. A rebase makes what is unfinished this server's own; what is finished stays below the first tick.
Where ids were kept (pg_upgrade) it changes nothing that matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
import structlog
from psycopg import sql

from outbox.errors import UnusableError
from outbox.position import END
from relay import lead, scripts

log = structlog.get_logger()


@dataclass(frozen=True)
class Restored:
    """This database was on the server `former` when the last relay led; `counter_behind` says that transactions of the
    last tick have not happened here yet."""

    former: str
    current: str
    counter_behind: bool


def check(connection: psycopg.Connection, schema: str) -> Restored | None:
    """Whether the log must be rebased before anything is published."""
    row = connection.execute(scripts.sql("restored", schema)).fetchone()
    assert row is not None
    found = Restored(*row)
    return found if found.former != found.current or found.counter_behind else None


def perform(connection: psycopg.Connection, schema: str, restored: Restored) -> int:
    """Rebase the log in one transaction; how many events are unfinished. The caller holds the leader's lock.

    Afterwards every handler is detached and fed with the unfinished events; their deliveries keep what is done from
    running again. Raises `UnusableError` for a role that may not change events.
    """
    log.warning(
        "relay.restored", former=restored.former, current=restored.current, counter_behind=restored.counter_behind
    )
    try:
        with connection.transaction():
            events = _rebase(connection, schema)
    except psycopg.errors.InsufficientPrivilege as error:
        raise UnusableError(
            "this database was restored from another server, and its log must be rebased, which needs the right to"
            " change events: run `outbox upkeep` once as the schema's owner"
        ) from error
    log.warning("relay.rebased", unfinished=events)
    return events


def rebase_if_restored(connection: psycopg.Connection, schema: str, *, dry_run: bool = False) -> int | None:
    """Rebase the log by hand, before a relay leads; how many events are unfinished (0 for a dry run), None if there was
    no need. Raises `UnusableError` when a relay leads already."""
    if check(connection, schema) is None:
        return None
    if not lead.try_to_lead(connection, schema):
        raise UnusableError("this database was restored, and a relay leads: stop it, then run this again")
    try:
        restored = check(connection, schema)
        return None if restored is None else 0 if dry_run else perform(connection, schema, restored)
    finally:
        lead.stop_leading(connection, schema)


def _rebase(connection: psycopg.Connection, schema: str) -> int:
    # One snapshot for all statements: what is committed meanwhile is the next tick's.
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    row = connection.execute("SELECT pg_current_snapshot()::text").fetchone()
    assert row is not None
    snapshot = row[0]
    for name, value in (("enable_seqscan", "on"), ("plan_cache_mode", "auto")):
        # The leader's session is set for polls.
        connection.execute("SELECT set_config(%s, %s, true)", [name, value])
    connection.execute(scripts.sql("unfinished", schema))
    connection.execute("ANALYZE unfinished")
    connection.execute(scripts.sql("passed_by", schema))
    renumber = _lift_seq(connection, schema)
    events = connection.execute(scripts.sql("renew", schema), {"renumber": renumber}).rowcount
    connection.execute(scripts.sql("genesis", schema), {"snapshot": snapshot, "end": END})
    return events


def _lift_seq(connection: psycopg.Connection, schema: str) -> bool:
    """Lift the sequence above all events. Whether some of them may have been given the same number."""
    row = connection.execute(
        sql.SQL(
            "SELECT max(seq), count(*) > count(DISTINCT seq), (SELECT last_value FROM {schema}.event_seq)"
            " FROM {schema}.event"
        ).format(schema=sql.Identifier(schema))
    ).fetchone()
    assert row is not None
    highest, doubled, drawn = row
    behind = highest is not None and highest > drawn
    if behind:
        connection.execute("SELECT setval(%s::regclass, %s)", [f"{schema}.event_seq", highest])
    return behind or bool(doubled)
