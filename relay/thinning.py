"""Ticks that no position needs: their batch is read as part of the next one's."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from relay.retention import Mark, superfluous

BATCH = 10_000
"""Ticks that are looked at, and deleted, in one transaction."""


def thin(
    connection: psycopg.Connection, schema: str, needed: int, *, dry_run: bool, pause: Callable[[float], object]
) -> int:
    """Delete superfluous ticks below those that the lowest position, in tick `needed`, has: its own and the one before.
    How many. What is older is there for handlers to come, who may as well read larger batches."""
    table = f"{schema}.tick"
    row = connection.execute(
        f"SELECT (SELECT max(id) FROM {table} WHERE id < %s),"
        f" (SELECT xid::text::bigint FROM {schema}.event ORDER BY xid LIMIT 1)".encode(),
        [needed],
    ).fetchone()
    assert row is not None
    upto, oldest = row
    deleted = start = 0
    while upto is not None:
        ticks = [
            Mark(*found)
            for found in connection.execute(
                f"SELECT id, pg_snapshot_xmax(snapshot)::text::bigint FROM {table} WHERE id >= %s AND id <= %s"
                " ORDER BY id LIMIT %s".encode(),
                [start, upto, BATCH],
            )
        ]
        gone = superfluous(ticks, oldest)
        if gone and not dry_run:
            connection.execute(f"DELETE FROM {table} WHERE id = ANY(%s)".encode(), [gone])
        deleted += len(gone)
        if len(ticks) < BATCH:
            break
        start = ticks[-1].id
        pause(0)
    return deleted
