"""The relay's polls and small reads touch few pages, whatever has piled up and whatever the planner knows of it."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from relay import lead, scripts, tick

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
        found = tick.take(connection, "outbox", last, 0, ["a"])
        assert found is not None
        assert found.rows is None
        assert sum(chunk.rows for chunk in tick.read(connection, "outbox", found.tick, ["a"], -1)) == PILE
        last = found.tick
        for _ in range(8):
            # As often as it takes for statements to be prepared and for the server to keep a plan.
            before = pages_touched(connection)
            assert tick.take(connection, "outbox", last, 0, ["a"]) is None
            assert pages_touched(connection) - before <= MOST_PAGES
            writer.execute("INSERT INTO outbox.event (name, payload) VALUES ('a', '{}')")
            before = pages_touched(connection)
            found = tick.take(connection, "outbox", last, 0, ["a"])
            assert found is not None
            assert found.rows is not None
            assert sum(chunk.rows for chunk in tick.chunks(found.rows, found.tick.id)) == 1
            assert pages_touched(connection) - before <= MOST_PAGES
            last = found.tick


@pytest.mark.parametrize("names", [["a"], ["b"], ["a", "b"], []])
def test_what_comes_with_a_tick_is_what_its_batch_has(database_url: str, names: list[str]) -> None:
    with (
        psycopg.connect(database_url) as early,
        psycopg.connect(database_url, autocommit=True) as writer,
        lead.connect(database_url, "outbox") as connection,
    ):
        (last,) = tick.load(connection, "outbox", 0)
        # Its transaction id is older than those of the next tick, its events come later.
        early.execute("SELECT pg_current_xact_id()")
        for turn in range(3):
            writer.execute("INSERT INTO outbox.event (name, payload) VALUES ('a', '{}'), ('b', '{}'), ('c', '{}')")
            if turn == 1:
                early.execute("INSERT INTO outbox.event (name, payload) VALUES ('b', '{}'), ('a', '{}')")
                early.commit()
            found = tick.take(connection, "outbox", last, 0, names)
            assert found is not None
            assert found.rows is not None
            last = found.tick
            there = list(tick.chunks(found.rows, last.id))
            (loaded,) = tick.load(connection, "outbox", last.id)
            assert loaded == last
            again = list(tick.read(connection, "outbox", loaded, names, -1))
            assert [chunk.parts for chunk in there] == [chunk.parts for chunk in again]
            assert sum(chunk.rows for chunk in there) == len(names) * (2 if turn == 1 else 1)


@pytest.mark.parametrize("analyzed", [False, True])
def test_a_catch_up_read_touches_each_event_once_however_many_ticks_there_are(
    database_url: str, analyzed: bool
) -> None:
    ticks, events = 60, 200
    with (
        psycopg.connect(database_url, autocommit=True) as writer,
        lead.connect(database_url, "outbox") as connection,
    ):
        (last,) = tick.load(connection, "outbox", 0)
        start = last.id
        for _ in range(ticks):
            writer.execute(
                "INSERT INTO outbox.event (name, payload) SELECT 'a', '{}' FROM generate_series(1, %s)", [events]
            )
            found = tick.take(connection, "outbox", last, 0, [])
            assert found is not None
            last = found.tick
        writer.execute(
            "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
            " SELECT id, 'h', created_at, 'done', 1 FROM outbox.event WHERE seq % 2 = 0"
        )
        if analyzed:
            writer.execute("VACUUM ANALYZE")
        there = tick.load(connection, "outbox", start)
        parameters = {
            "ticks": [each.id for each in there],
            "from": [str(each.since) for each in there],
            "to": [str(each.snapshot) for each in there],
            "name": "a",
            "handler": "h",
            "after_tick": start,
            "after_seq": 0,
        }
        explain = b"EXPLAIN (ANALYZE, TIMING off, FORMAT json) "
        row = connection.execute(explain + scripts.sql("catch_up", "outbox"), parameters).fetchone()
        assert row is not None
        [explained] = row[0]
        assert explained["Plan"]["Actual Rows"] == ticks * events / 2
        assert handled(explained["Plan"]) < 10 * ticks * events


def handled(plan: dict[str, Any]) -> float:
    """Rows that the nodes of an executed plan gave on or dropped, in all."""
    dropped = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Join Filter", 0)
    below: float = sum(map(handled, plan.get("Plans", [])))
    return float((plan["Actual Rows"] + dropped) * plan["Actual Loops"] + below)
