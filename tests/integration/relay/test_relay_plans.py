"""The relay's polls and small reads touch few pages, whatever has piled up and whatever the planner knows of it."""

from __future__ import annotations

import psycopg
import pytest

from relay import lead, tick

PILE = 20_000
MOST_PAGES = 150
"""A few pages for each partition and index; a scan of the pile reads many times that."""


def pages_touched(connection: psycopg.Connection) -> int:
    """How many pages of the events' tables and indexes this database has read so far."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    row = connection.execute(
        "SELECT sum(heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit) FROM pg_statio_user_tables"
        " WHERE schemaname = 'outbox' AND relname LIKE 'event%'"
    ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("analyzed", [False, True])
def test_a_poll_and_a_small_read_do_not_scan_what_is_published_already(database_url: str, analyzed: bool) -> None:
    with (
        psycopg.connect(database_url, autocommit=True) as writer,
        lead.connect(database_url, "outbox") as connection,
    ):
        (last,) = tick.load(connection, "outbox", 0)
        for _ in range(4):
            writer.execute(
                "INSERT INTO outbox.event (name, payload) SELECT 'a', '{}' FROM generate_series(1, %s)", [PILE // 4]
            )
        if analyzed:
            writer.execute("VACUUM ANALYZE outbox.event")
        taken = tick.take(connection, "outbox", last, 0)
        assert taken is not None
        assert sum(chunk.rows for chunk in tick.read(connection, "outbox", taken, ["a"], -1)) == PILE
        for _ in range(8):
            # As often as it takes for statements to be prepared and for the server to keep a plan.
            before = pages_touched(connection)
            assert tick.take(connection, "outbox", taken, 0) is None
            assert pages_touched(connection) - before <= MOST_PAGES
            writer.execute("INSERT INTO outbox.event (name, payload) VALUES ('a', '{}')")
            last, taken = taken, tick.take(connection, "outbox", taken, 0)
            assert taken is not None
            before = pages_touched(connection)
            assert sum(chunk.rows for chunk in tick.read(connection, "outbox", taken, ["a"], -1)) == 1
            assert pages_touched(connection) - before <= MOST_PAGES
