"""The relay's polls and small reads touch few pages, whatever has piled up and whatever the planner knows of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psycopg
import pytest

from relay import lead, scripts, tick

pytestmark = pytest.mark.oldest

PILE = 20_000
LARGE = 300
"""Events of a tick that are too many to come with it."""
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
        found = tick.take(connection.cursor(), "outbox", last, 0, ["a"])
        assert found is not None
        assert found.rows is None
        assert sum(chunk.rows for chunk in tick.read(connection, "outbox", found.tick, ["a"], -1)) == PILE
        last = found.tick
        for _ in range(8):
            # As often as it takes for statements to be prepared and for the server to keep a plan.
            before = pages_touched(connection)
            assert tick.take(connection.cursor(), "outbox", last, 0, ["a"]) is None
            assert pages_touched(connection) - before <= MOST_PAGES
            writer.execute("INSERT INTO outbox.event (name, payload) VALUES ('a', '{}')")
            before = pages_touched(connection)
            found = tick.take(connection.cursor(), "outbox", last, 0, ["a"])
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
            found = tick.take(connection.cursor(), "outbox", last, 0, names)
            assert found is not None
            assert found.rows is not None
            last = found.tick
            there = list(tick.chunks(found.rows, last.id))
            (loaded,) = tick.load(connection, "outbox", last.id)
            assert loaded == last
            again = list(tick.read(connection, "outbox", loaded, names, -1))
            assert [chunk.parts for chunk in there] == [chunk.parts for chunk in again]
            assert sum(chunk.rows for chunk in there) == len(names) * (2 if turn == 1 else 1)


@pytest.mark.parametrize("names", [["a"], ["a", "rare"], ["rare"], []])
def test_a_large_tick_is_read_in_full_however_few_of_its_events_are_of_names_that_are_attached(
    database_url: str, names: list[str]
) -> None:
    with (
        psycopg.connect(database_url, autocommit=True) as writer,
        lead.connect(database_url, "outbox") as connection,
    ):
        (last,) = tick.load(connection, "outbox", 0)
        writer.execute(
            "INSERT INTO outbox.event (name, payload)"
            " SELECT CASE WHEN n IN (1, %(size)s) THEN 'rare' ELSE 'a' END, '{}'"
            "   FROM generate_series(1, %(size)s) AS n",
            {"size": LARGE},
        )
        found = tick.take(connection.cursor(), "outbox", last, 0, names)
        assert found is not None
        # More rows than come with a tick: those that come would be the first ones only.
        assert found.rows is None
        counted = sum(chunk.rows for chunk in tick.read(connection, "outbox", found.tick, names, -1))
        assert counted == (LARGE - 2) * ("a" in names) + 2 * ("rare" in names)
        assert tick.take(connection.cursor(), "outbox", found.tick, 0, names) is None


@pytest.mark.parametrize("count", [tick.SMALL, tick.SMALL + 1])
@pytest.mark.parametrize("late", [0, 1, tick.SMALL, tick.SMALL + 1])
def test_events_of_transactions_that_were_open_come_whole_at_every_size_of_batch(
    database_url: str, count: int, late: int
) -> None:
    with (
        psycopg.connect(database_url) as early,
        psycopg.connect(database_url, autocommit=True) as writer,
        lead.connect(database_url, "outbox") as connection,
    ):
        add = "INSERT INTO outbox.event (name, payload) SELECT 'a', '{}' FROM generate_series(1, %s)"
        (last,) = tick.load(connection, "outbox", 0)
        early.execute(add, [late])
        early.execute("SELECT pg_current_xact_id()")
        writer.execute(add, [1])
        first = tick.take(connection.cursor(), "outbox", last, 0, ["a"])
        assert first is not None
        assert first.rows is not None
        early.commit()
        writer.execute(add, [count])
        found = tick.take(connection.cursor(), "outbox", first.tick, 0, ["a"])
        assert found is not None
        assert (found.rows is None) == (late + count > tick.SMALL)
        rest = (
            tick.read(connection, "outbox", found.tick, ["a"], -1)
            if found.rows is None
            else tick.chunks(found.rows, found.tick.id)
        )
        wanted = writer.execute("SELECT seq FROM outbox.event ORDER BY seq").fetchall()
        assert sorted(seqs(tick.chunks(first.rows, 1)) + seqs(rest)) == [row[0] for row in wanted]


def seqs(chunks: Iterable[tick.Chunk]) -> list[int]:
    """Of chunks of one event name."""
    return [
        int(number.split(b"-")[1]) for chunk in chunks for entries in chunk.parts.values() for number in entries.ids
    ]


def test_large_payloads_in_few_rows_do_not_come_with_their_tick(database_url: str) -> None:
    with (
        psycopg.connect(database_url, autocommit=True) as writer,
        lead.connect(database_url, "outbox") as connection,
    ):
        (last,) = tick.load(connection, "outbox", 0)
        # They take little room in the table: what counts is what they are when they are read.
        writer.execute(
            "INSERT INTO outbox.event (name, payload) SELECT 'a', to_json(repeat('x', %s)) FROM generate_series(1, 6)",
            [tick.CHUNK_BYTES // 4],
        )
        found = tick.take(connection.cursor(), "outbox", last, 0, ["a"])
        assert found is not None
        assert found.rows is None
        assert sum(chunk.rows for chunk in tick.read(connection, "outbox", found.tick, ["a"], -1)) == 6


def test_polls_and_reads_leave_out_what_an_open_transaction_has_written(database_url: str) -> None:
    with (
        psycopg.connect(database_url) as large,
        psycopg.connect(database_url, autocommit=True) as writer,
        lead.connect(database_url, "outbox") as connection,
    ):
        (last,) = tick.load(connection, "outbox", 0)
        large.execute("INSERT INTO outbox.event (name, payload) SELECT 'a', '{}' FROM generate_series(1, %s)", [PILE])
        writer.execute("INSERT INTO outbox.event (name, payload) VALUES ('a', '{}')")
        found = tick.take(connection.cursor(), "outbox", last, 0, ["a"])
        for _ in range(4):
            assert found is not None
            last = found.tick
            assert len(last.snapshot.xip) == 1
            before = pages_touched(connection)
            assert tick.take(connection.cursor(), "outbox", last, 0, ["a"]) is None
            writer.execute("INSERT INTO outbox.event (name, payload) VALUES ('a', '{}')")
            found = tick.take(connection.cursor(), "outbox", last, 0, ["a"])
            assert pages_touched(connection) - before <= 2 * MOST_PAGES
        assert found is not None
        writer.execute("INSERT INTO outbox.event (name, payload) SELECT 'a', '{}' FROM generate_series(1, %s)", [LARGE])
        found = tick.take(connection.cursor(), "outbox", found.tick, 0, ["a"])
        assert found is not None
        before = pages_touched(connection)
        assert sum(chunk.rows for chunk in tick.read(connection, "outbox", found.tick, ["a"], -1)) == LARGE
        assert pages_touched(connection) - before <= MOST_PAGES
        large.commit()
        whole = tick.take(connection.cursor(), "outbox", found.tick, 0, ["a"])
        assert whole is not None
        assert sum(chunk.rows for chunk in tick.read(connection, "outbox", whole.tick, ["a"], -1)) == PILE


def test_polls_that_find_nothing_burn_no_transaction_ids(database_url: str) -> None:
    with (
        psycopg.connect(database_url) as early,
        psycopg.connect(database_url, autocommit=True) as writer,
        lead.connect(database_url, "outbox") as connection,
    ):
        (last,) = tick.load(connection, "outbox", 0)

        def next_id() -> int:
            row = writer.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone()
            assert row is not None
            return int(row[0])

        early.execute("SELECT pg_current_xact_id()")
        for _ in range(2):
            # First with a transaction that is open, then without.
            writer.execute("INSERT INTO outbox.event (name, payload) VALUES ('a', '{}')")
            found = tick.take(connection.cursor(), "outbox", last, 0, ["a"])
            assert found is not None
            last = found.tick
            before = next_id()
            for _ in range(100):
                assert tick.take(connection.cursor(), "outbox", last, 0, ["a"]) is None
            # The server's own upkeep may need a few.
            assert next_id() - before < 50
            early.rollback()


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
            found = tick.take(connection.cursor(), "outbox", last, 0, [])
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


def test_the_events_of_many_names_are_fetched_so_many_at_a_time_that_each_has_a_call_of_some_size(
    database_url: str,
) -> None:
    names = [f"name{n}" for n in range(100)]
    with (
        psycopg.connect(database_url, autocommit=True) as writer,
        lead.connect(database_url, "outbox") as connection,
    ):
        (last,) = tick.load(connection, "outbox", 0)
        writer.execute(
            "INSERT INTO outbox.event (name, payload)"
            " SELECT 'name' || (n % 100), '{}' FROM generate_series(1, 40000) AS n"
        )
        found = tick.take(connection.cursor(), "outbox", last, 0, names)
        assert found is not None
        chunks = list(tick.read(connection, "outbox", found.tick, names, -1))
        assert sum(chunk.rows for chunk in chunks) == 40_000
        assert max(len(entries) for chunk in chunks for entries in chunk.parts.values()) > 5 * tick.MOST_ROWS // len(
            names
        )
