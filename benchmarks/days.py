"""Ten days in a few minutes: does retention keep the tables and the relay's polls as they are?

Each simulated day lies one day further in the future: its events and deliveries carry its dates, and upkeep is given
its clock. The relay publishes the events; consumers are played, their outcomes written by one statement.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from importlib.resources import files

import psycopg

from benchmarks import subscription
from benchmarks.relay import Consumers, Load
from benchmarks.report import Figure, Report, Side
from benchmarks.rounds import say, wait_until
from benchmarks.testbed import Testbed, testbed
from outbox.names import stream_key
from relay import lead, tick, upkeep

DATABASE = "bench"
LOAD = Load(names=1)
[(HANDLER, NAME)] = LOAD.handlers().items()
KEEP = timedelta(days=3)
"""Retention. Constant from the day after it on, which is what the others are compared with."""
STEADY = KEEP.days + 2
ROWS_PER_TRANSACTION = 100
POLLS = 300


def run(*, repeat: int, quick: bool, days: int = 10, events: int = 1_000_000) -> Report:
    """Live through `days` of `events` each, once: `repeat` is for the other benchmarks."""
    if quick:
        events = min(events, 20_000)
    sizes: list[float] = []
    ticks: list[float] = []
    polls: list[float] = []
    taken: list[float] = []
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    with testbed() as bed:
        say(f"days: {days} days of {events:,} events, {KEEP.days} days retained")
        bed.create(DATABASE)
        bed.redis.flushall()
        subscription.attach(bed, DATABASE, {HANDLER: NAME})
        for number in range(1, days + 1):
            began = time.monotonic()
            day = today + timedelta(days=number)
            keep_up(bed, day)
            live(bed, day, events)
            keep_up(bed, day + timedelta(hours=23))
            with bed.connect(DATABASE) as connection:
                sizes.append(size(connection))
                ticks.append(count(connection, "tick"))
            poll, take = costs(bed, day)
            polls.append(poll)
            taken.append(take)
            say(
                f"  day {number}  {sizes[-1]:,.0f} MiB, {ticks[-1]:,.0f} ticks, poll {poll:.2f} ms, tick {take:.2f} ms"
                f"  ({time.monotonic() - began:.0f} s)"
            )
    sides = (
        Side("all tables and indexes", "MiB", tuple(sizes)),
        Side("tick rows", "rows", tuple(ticks)),
        Side("a poll that finds nothing", "ms", tuple(polls)),
        Side("a tick of one event", "ms", tuple(taken)),
    )
    return Report(
        name="days",
        title=f"Days: {days} days of {events:,} events, {KEEP.days} days retained; a value for each day",
        sides=sides,
        figures=tuple(
            Figure(
                key, f"{label}, last day / day {STEADY}", side.runs[-1] / side.runs[min(STEADY, days) - 1], most, True
            )
            for key, label, side, most in (
                ("days_size", "size of all tables", sides[0], 1.1),
                ("days_ticks", "tick rows", sides[1], 1.1),
                ("days_poll", "cost of a poll", sides[2], 1.25),
                ("days_tick", "cost of a tick", sides[3], 1.25),
            )
        ),
        details={"days": days, "events": events, "retained_days": KEEP.days},
    )


def keep_up(bed: Testbed, now: datetime) -> None:
    """A round of upkeep as if it were `now`."""
    with lead.connect(bed.postgres.url(DATABASE), "outbox", role="upkeep") as connection:
        upkeep.run(connection, "outbox", KEEP, now=now)


def live(bed: Testbed, day: datetime, events: int) -> None:
    """Add a day's events while a relay runs, and finish them."""
    with bed.relay(DATABASE) as relay, bed.connect(DATABASE) as connection:
        statement = (files(__package__) / "days.sql").read_bytes()
        receive = Consumers(bed, LOAD)
        before = count(connection, "event")
        connection.execute("SET synchronous_commit = off")
        for first in range(0, events, ROWS_PER_TRANSACTION):
            seconds = 86_400 * first / events
            connection.execute(
                statement,
                {"name": NAME, "day": day, "second": seconds, "first": first, "rows": ROWS_PER_TRANSACTION},
            )
            if first % 10_000 == 0:
                receive()
        assert count(connection, "event") - before == events
        wait_until(lambda: relay.running() and published(connection), "the relay publishes the day", timeout=300)
        receive()
        connection.execute(
            "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
            " SELECT e.id, %s, e.created_at, 'done', 1 FROM outbox.event AS e"
            " WHERE NOT EXISTS (SELECT FROM outbox.delivery AS d"
            "                    WHERE d.event_id = e.id AND d.event_created_at = e.created_at)",
            [HANDLER],
        )
        stream = stream_key("outbox", NAME)
        for entry in bed.redis.xpending_range(stream, HANDLER, "-", "+", 10):
            bed.redis.xack(stream, HANDLER, entry["message_id"])
        wait_until(lambda: relay.running() and finished(connection), "the sweep finds the day done", timeout=300)


def published(connection: psycopg.Connection) -> bool:
    """Whether the last tick that saw anything is on the streams, and sees everything."""
    row = connection.execute(
        "SELECT t.count IS NOT NULL"
        "   AND NOT EXISTS (SELECT FROM outbox.event AS e WHERE e.xid >= pg_snapshot_xmax(t.snapshot))"
        "  FROM outbox.tick AS t ORDER BY t.id DESC LIMIT 1"
    ).fetchone()
    return row is not None and bool(row[0])


def finished(connection: psycopg.Connection) -> bool:
    """Whether `done_to` has reached the last tick."""
    row = connection.execute(
        "SELECT bool_and(attached AND done_tick >= (SELECT max(id) FROM outbox.tick)) FROM outbox.handler"
    ).fetchone()
    return row is not None and bool(row[0])


def size(connection: psycopg.Connection) -> float:
    """All tables of the schema with their indexes, in MiB."""
    row = connection.execute(
        "SELECT sum(pg_total_relation_size(oid))::float8 / 1048576 FROM pg_class"
        " WHERE relnamespace = 'outbox'::regnamespace AND relkind IN ('r', 'S')"
    ).fetchone()
    assert row is not None
    return float(row[0])


def count(connection: psycopg.Connection, table: str) -> int:
    """How many rows a table has."""
    row = connection.execute(f"SELECT count(*) FROM outbox.{table}".encode()).fetchone()
    assert row is not None
    return int(row[0])


def costs(bed: Testbed, day: datetime) -> tuple[float, float]:
    """The median milliseconds of a poll that finds nothing, and of a tick of one event; no relay leads meanwhile."""
    polls: list[float] = []
    takes: list[float] = []
    with (
        lead.connect(bed.postgres.url(DATABASE), "outbox") as leader,
        bed.connect(DATABASE) as writer,
    ):
        cursor = leader.cursor()
        row = leader.execute("SELECT max(id) FROM outbox.tick").fetchone()
        assert row is not None
        (last,) = tick.load(leader, "outbox", row[0])
        for _ in range(POLLS):
            began = time.perf_counter()
            found = tick.take(cursor, "outbox", last, 0, [NAME])
            polls.append((time.perf_counter() - began) * 1000)
            assert found is None
        for number in range(POLLS):
            writer.execute(
                "INSERT INTO outbox.event (name, payload, created_at) VALUES (%s, '{}', %s)",
                [NAME, day + timedelta(hours=23, seconds=number)],
            )
            began = time.perf_counter()
            found = tick.take(cursor, "outbox", last, 0, [NAME])
            takes.append((time.perf_counter() - began) * 1000)
            assert found is not None
            last = found.tick
    return sorted(polls)[POLLS // 2], sorted(takes)[POLLS // 2]
