"""Upkeep on a real server: partitions come and go, nothing grows, no writer waits, and what is needed stays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from outbox.position import END
from outbox.settings import Settings
from relay import lead, upkeep
from relay.retention import AHEAD

WEEK = timedelta(days=7)
DAILY = 3_000
"""Events of a simulated day."""

PATIENCE = "300ms"
"""A writer that waits for longer fails. A change may wait for its lock for 50 ms and take another 100; the rest is for
busy machines."""

Db = psycopg.Connection[Any]


class Log:
    """An outbox whose relay and handlers are played by SQL, on days that are simulated."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sql: Db = psycopg.connect(url, autocommit=True)
        self.keeper = lead.connect(url, "outbox", role="upkeep")
        self.today = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)

    def one(self, statement: str, *parameters: Any) -> Any:
        row = self.sql.execute(statement.encode(), parameters).fetchone()
        assert row is not None
        return row[0] if len(row) == 1 else row

    def day(self, number: int) -> datetime:
        """Noon of a day from today on."""
        return self.today + timedelta(days=number)

    def add(self, at: datetime, count: int = 1, name: str = "paid") -> None:
        self.sql.execute(
            "INSERT INTO outbox.event (name, payload, created_at)"
            " SELECT %s, '{}', %s::timestamptz + n * interval '1 ms' FROM generate_series(1, %s) AS n",
            [name, at, count],
        )

    def serve(self, handler: str, *, name: str = "paid", seen: datetime, done: tuple[int, int] = (0, 0)) -> None:
        """Make a handler known, or seen."""
        self.sql.execute(
            "INSERT INTO outbox.handler AS h (name, event_name, attached, done_tick, done_seq, last_seen)"
            " VALUES (%s, %s, true, %s, %s, %s) ON CONFLICT (name) DO UPDATE SET last_seen = excluded.last_seen",
            [handler, name, *done, seen],
        )

    def publish(self) -> int:
        """What the relay does with what is new."""
        number: int = self.one(
            "INSERT INTO outbox.tick (id, snapshot, count)"
            " SELECT greatest(max(id) + 1, extract(epoch FROM clock_timestamp())::bigint * 1000),"
            " pg_current_snapshot(), 0 FROM outbox.tick RETURNING id"
        )
        self.sql.execute("UPDATE outbox.relay SET tick = %s, seq = %s", [number, END])
        return number

    def finish(self, *handlers: str) -> None:
        """Everything is done by these handlers."""
        for handler in handlers:
            self.sql.execute(
                "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
                " SELECT e.id, h.name, e.created_at, 'done', 1 FROM outbox.event AS e JOIN outbox.handler AS h"
                " ON h.event_name = e.name WHERE h.name = %s AND e.seq > h.done_seq ON CONFLICT DO NOTHING",
                [handler],
            )
            self.sql.execute(
                "UPDATE outbox.handler SET done_tick = r.tick, done_seq = (SELECT max(seq) FROM outbox.event)"
                " FROM outbox.relay AS r WHERE name = %s",
                [handler],
            )

    def keep(self, now: datetime | None = None, **options: Any) -> upkeep.Report:
        return upkeep.run(self.keeper, "outbox", WEEK, now=now, pause=lambda _: None, **options)

    def days(self, table: str = "event") -> list[date]:
        """The days that have a partition."""
        rows = self.sql.execute(
            "SELECT right(relid::text, 8) FROM pg_partition_tree(%s)"
            " WHERE isleaf AND relid::text ~ '[0-9]{8}$' ORDER BY 1",
            [f"outbox.{table}"],
        ).fetchall()
        return [datetime.strptime(row[0], "%Y%m%d").date() for row in rows]

    def span(self, first: int, last: int) -> list[date]:
        return [self.day(n).date() for n in range(first, last + 1)]

    def close(self) -> None:
        self.keeper.close()
        self.sql.close()


@pytest.fixture
def log(database_url: str) -> Iterator[Log]:
    made = Log(database_url)
    yield made
    made.close()


# Making --------------------------------------------------------------------------------------------------------------


def test_partitions_are_made_ahead_and_a_second_round_finds_nothing_to_do(log: Log) -> None:
    report = log.keep(log.day(3))
    assert report.made == [f"{table}_p{day:%Y%m%d}" for table in ("event", "delivery") for day in log.span(8, 10)]
    assert log.days() == log.days("delivery") == log.span(0, 3 + AHEAD)
    assert not log.keep(log.day(3)).changed


def test_rows_of_the_default_partition_move_with_their_seq_and_xid(log: Log) -> None:
    log.add(log.day(20), 300)
    log.add(log.day(22), 5)
    log.serve("send", seen=log.day(20))
    log.publish()
    log.finish("send")
    before = log.sql.execute("SELECT id, seq, xid, created_at FROM outbox.event ORDER BY seq").fetchall()
    assert log.one("SELECT count(*) FROM outbox.event_default") == 305
    report = log.keep(log.day(21))
    assert report.moved == 2 * 305
    for table in ("event", "delivery"):
        assert log.one(f"SELECT count(*) FROM outbox.{table}_default") == 0
        assert set(log.span(20, 21 + AHEAD)) <= set(log.days(table))
    assert log.sql.execute("SELECT id, seq, xid, created_at FROM outbox.event ORDER BY seq").fetchall() == before
    assert log.one("SELECT count(*) FROM outbox.delivery") == 305


def test_a_default_partition_that_is_too_large_to_move_is_left_alone_until_it_expires_or_somebody_allows_it(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "MOVED_PER_SECOND", 1000)
    log.add(log.day(20), 150)
    report = log.keep(log.day(20))
    assert report.moved == 0
    assert "--may-block" in report.left[0]
    assert set(log.span(21, 27)) <= set(log.days())
    assert log.keep(log.day(20), may_block=1.0).moved == 150
    log.add(log.day(40), 150)
    log.publish()
    report = log.keep(log.day(50))
    assert report.deleted == 150
    assert log.one("SELECT count(*) FROM outbox.event") == 0


def test_a_dry_run_says_what_it_would_do_and_does_nothing(log: Log) -> None:
    log.add(log.day(0))
    log.publish()
    before = log.days()
    report = log.keep(log.day(30), dry_run=True)
    assert len(report.made) == 2 * (AHEAD + 1)
    assert len(report.dropped) == 2 * 8
    assert log.days() == before
    assert log.one("SELECT retained_from FROM outbox.relay") is None


# Retention -----------------------------------------------------------------------------------------------------------


def pages_touched(connection: Db) -> int:
    """How many pages of events and ticks, and of their indexes, this database has read so far."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    row = connection.execute(
        "SELECT sum(heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit) FROM pg_statio_user_tables"
        " WHERE schemaname = 'outbox' AND (relname LIKE 'event%' OR relname = 'tick')"
    ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.slow
def test_ten_days_of_load_leave_as_many_partitions_ticks_and_pages_to_poll_as_two_weeks_do(log: Log) -> None:
    def simulate(number: int) -> tuple[int, int, int]:
        """A day; afterwards partitions, ticks, and the pages that a poll touches."""
        now = log.day(number)
        log.keep(now)
        log.serve("send", seen=now)
        log.serve("bill", seen=now)
        for _ in range(10):
            log.add(now, DAILY // 10)
            log.publish()
        log.finish("send", "bill")
        assert log.one("SELECT count(*) FROM outbox.event_default") == 0
        log.keep(now + timedelta(hours=6))
        partitions = log.one("SELECT count(*) FROM pg_partition_tree('outbox.event') WHERE isleaf")
        xmax = log.one("SELECT pg_snapshot_xmax(snapshot)::text FROM outbox.tick ORDER BY id DESC LIMIT 1")
        poll = "SELECT EXISTS (SELECT FROM outbox.event WHERE xid >= %s::text::xid8)"
        with lead.connect(log.url, "outbox") as relay:
            assert relay.execute(poll, [xmax]).fetchone() == (False,)
            before = pages_touched(relay)
            assert relay.execute(poll, [xmax]).fetchone() == (False,)
            pages = pages_touched(relay) - before
        return partitions, log.one("SELECT count(*) FROM outbox.tick"), pages

    seen = [simulate(number) for number in range(10)]
    partitions, ticks, pages = zip(*seen, strict=True)
    assert set(partitions[7:]) == {7 + 1 + AHEAD + 1}
    assert max(ticks) <= 25
    assert max(pages) <= 4 * max(partitions)
    assert max(pages[8:]) <= pages[7] + 4
    assert log.one("SELECT count(*) FROM outbox.event") == 8 * DAILY
    assert log.one("SELECT count(*) FROM outbox.delivery") == 2 * 8 * DAILY
    assert log.one("SELECT count(*) FROM pg_partition_tree('outbox.delivery') WHERE isleaf") == partitions[9]


@pytest.fixture
def aged(log: Log) -> Log:
    """Nine days on: events of the first day are expired, and done by the only handler."""
    log.serve("send", seen=log.day(9))
    log.add(log.day(0), 10)
    log.publish()
    log.finish("send")
    return log


def test_what_is_done_and_expired_is_dropped_and_the_database_knows_from_when_on_it_is_complete(aged: Log) -> None:
    report = aged.keep(aged.day(9))
    assert report.dropped == [
        f"{table}_p{day:%Y%m%d}" for table in ("event", "delivery") for day in aged.span(0, 1)
    ]  # fmt: skip
    assert aged.one("SELECT count(*) FROM outbox.event") == aged.one("SELECT count(*) FROM outbox.delivery") == 0
    assert aged.one("SELECT retained_from FROM outbox.relay").date() == aged.day(2).date()


def test_an_event_that_a_served_handler_has_not_done_keeps_its_partition_and_the_handler_is_named(aged: Log) -> None:
    aged.serve("slow", seen=aged.day(9))
    report = aged.keep(aged.day(9))
    assert (report.dropped, report.held_by) == ([], ["slow"])
    aged.finish("slow")
    assert len(aged.keep(aged.day(9)).dropped) == 4


def test_an_event_that_was_not_published_keeps_its_partition_although_nobody_listens(log: Log) -> None:
    log.add(log.day(0))
    assert log.keep(log.day(9)).dropped == []
    log.publish()
    assert len(log.keep(log.day(9)).dropped) == 4


def test_a_handler_that_nobody_serves_any_more_keeps_nothing_and_is_named(aged: Log) -> None:
    aged.serve("removed", seen=aged.day(1))
    report = aged.keep(aged.day(9))
    assert report.unserved == ["removed"]
    assert len(report.dropped) == 4


def test_expired_events_that_no_handler_ever_got_are_named_with_their_number_when_they_go(aged: Log) -> None:
    aged.add(aged.day(0), 3, name="forgotten")
    aged.add(aged.day(1), 2, name="forgotten")
    aged.add(aged.day(0), 1, name="(purged)")
    aged.add(aged.day(8), 5, name="forgotten")
    aged.add(aged.day(0), 1, name="cancelled")
    aged.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
        " SELECT id, 'gone', created_at, 'cancelled', 0 FROM outbox.event WHERE name = 'cancelled'"
    )
    aged.publish()
    aged.finish("send")
    with capture_logs() as lines:
        keeper = upkeep.Upkeep(lambda: aged.keeper, schema="outbox", keep=WEEK)
        report = aged.keep(aged.day(9))
        keeper._tell(report)
    assert report.unhandled == {"forgotten": 5}
    assert [line for line in lines if line["event"] == "event.unhandled"] == [
        {"event": "event.unhandled", "log_level": "warning", "events": {"forgotten": 5}}
    ]
    assert aged.keep(aged.day(9)).unhandled == {}


def test_an_outage_of_all_workers_that_is_longer_than_the_retention_loses_nothing(aged: Log) -> None:
    aged.add(aged.day(1))
    aged.publish()
    report = aged.keep(aged.day(30))
    assert report.unserved == []
    assert report.held_by == ["send"]
    assert aged.one("SELECT count(*) FROM outbox.event") == 1


def test_an_event_that_is_to_be_retried_stays_with_its_partition_and_delays_no_other(aged: Log) -> None:
    aged.add(aged.day(1), 5)
    aged.publish()
    aged.finish("send")
    aged.sql.execute(
        "UPDATE outbox.delivery SET state = 'retrying', due_at = now()"
        " WHERE event_id = (SELECT id FROM outbox.event ORDER BY seq LIMIT 1)"
    )
    assert [name[-8:] for name in aged.keep(aged.day(9)).dropped] == [f"{aged.day(1):%Y%m%d}"] * 2
    assert aged.one("SELECT count(*) FROM outbox.event") == 10
    aged.sql.execute("UPDATE outbox.delivery SET state = 'done', due_at = NULL")
    assert [name[-8:] for name in aged.keep(aged.day(9)).dropped] == [f"{aged.day(0):%Y%m%d}"] * 2


def test_dead_letters_outlive_their_events(aged: Log) -> None:
    aged.sql.execute("UPDATE outbox.delivery SET state = 'dead'")
    aged.sql.execute(
        "INSERT INTO outbox.dead_letter (event_id, handler, event_created_at, name, payload, attempts, error)"
        " SELECT id, 'send', created_at, name, payload, 1, 'no' FROM outbox.event"
    )
    assert len(aged.keep(aged.day(9)).dropped) == 4
    assert aged.one("SELECT count(*) FROM outbox.dead_letter") == 10


def test_ticks_that_a_position_needs_stay(log: Log) -> None:
    log.serve("send", seen=log.day(0))
    ids = []
    for number in range(12):
        log.add(log.day(0))
        ids.append(log.publish())
        if number == 5:
            log.finish("send")
    log.keep()
    left = [row[0] for row in log.sql.execute("SELECT id FROM outbox.tick ORDER BY id")]
    assert left[-8:] == ids[4:]
    assert len(left) == 9


# In nobody's way -----------------------------------------------------------------------------------------------------


def test_a_writer_that_stays_in_its_transaction_delays_only_the_drop_and_no_other_writer(log: Log) -> None:
    log.keep(log.day(-9))
    log.serve("send", seen=datetime.now(UTC))
    log.add(log.day(-9), 10)
    log.publish()
    log.finish("send")
    missing, expired = (f"event_p{log.day(number):%Y%m%d}" for number in (AHEAD, -9))
    log.sql.execute(f"DROP TABLE outbox.{missing}".encode())
    with psycopg.connect(log.url) as writer, psycopg.connect(log.url, autocommit=True) as other:
        writer.execute("INSERT INTO outbox.event (name, payload) VALUES ('paid', '{}')")
        other.execute(f"SET lock_timeout = '{PATIENCE}'".encode())
        reports: list[upkeep.Report] = []
        keeper = threading.Thread(target=lambda: reports.append(log.keep()))
        keeper.start()
        while keeper.is_alive():
            other.execute("INSERT INTO outbox.event (name, payload) VALUES ('paid', '{}')")
        keeper.join()
        assert missing in reports[0].made
        assert reports[0].left[0].startswith(f"{expired}: ")
        # The space is free already.
        assert log.one("SELECT pg_relation_size(%s)", f"outbox.{expired}") == 0
    assert expired in log.keep().dropped


def test_eight_writers_that_never_pause_wait_for_no_upkeep(log: Log, wait_for: Callable[..., Any]) -> None:
    """Partitions are made, filled from the default one that they write to, emptied and dropped meanwhile."""
    log.sql.execute(f"DROP TABLE outbox.event_p{log.day(0):%Y%m%d}".encode())
    for day in range(-30, -10):
        log.add(log.day(day), 50)
    log.publish()
    stop = threading.Event()
    errors: list[BaseException] = []
    written = [0] * 8

    def write(number: int) -> None:
        with psycopg.connect(log.url, autocommit=True) as writer:
            writer.execute(f"SET lock_timeout = '{PATIENCE}'".encode())
            try:
                while not stop.is_set():
                    writer.execute("INSERT INTO outbox.event (name, payload) VALUES ('paid', '{}')")
                    written[number] += 1
            except BaseException as error:
                errors.append(error)

    writers = [threading.Thread(target=write, args=[number]) for number in range(8)]
    for each in writers:
        each.start()
    wait_for(lambda: all(written) or errors, "every writer at work")
    reports = [log.keep(may_block=0.1)]
    while (reports[-1].changed or reports[-1].left) and len(reports) < 20:
        reports.append(log.keep())
    stop.set()
    for each in writers:
        each.join()
    assert errors == []
    assert sum(report.moved for report in reports) > 0
    assert sum(report.deleted for report in reports) == 20 * 50
    assert log.one("SELECT count(*) FROM outbox.event_default") == 0
    assert log.one("SELECT count(*), count(DISTINCT seq) FROM outbox.event") == (sum(written), sum(written))


def test_two_at_once_do_no_harm(aged: Log) -> None:
    other = Log(aged.url)
    reports: list[upkeep.Report] = []
    threads = [
        threading.Thread(target=lambda each=each: reports.append(each.keep(aged.day(9))))  # type: ignore[misc]
        for each in (aged, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert len(reports) == 2
    assert aged.keep(aged.day(9)).left == []
    assert aged.days() == aged.days("delivery") == aged.span(2, 7) + aged.span(9, 9 + AHEAD)


# By the relay --------------------------------------------------------------------------------------------------------


def test_a_leading_relay_does_it_at_once(
    log: Log, box: Any, run_relay: Callable[..., Any], wait_for: Callable[..., Any], settings: Settings
) -> None:
    log.add(log.day(-20), 10)
    log.publish()
    for day in log.span(5, 7):
        log.sql.execute(f"DROP TABLE outbox.event_p{day:%Y%m%d}".encode())
    with run_relay():
        wait_for(lambda: log.days() == log.span(0, AHEAD), "the partitions")
        wait_for(lambda: log.one("SELECT count(*) FROM outbox.event_default") == 0, "an empty default partition")
        box.subscribe("send", event="paid")
        seqs = box.add("paid", 3)
        assert box.work_until("paid", "send", seqs) == seqs
