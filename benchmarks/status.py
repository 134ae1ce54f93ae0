"""How soon status, one event's story and the listings answer when much has been kept.

The past is made on the server: events over several days, each with an outcome, many ticks, retries and dead letters.
One handler is stuck on an early event while all above it is done, two have only begun with all of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import psycopg
import redis

from benchmarks.report import Figure, Report, Side
from benchmarks.rounds import MeasurementError, say
from benchmarks.testbed import Testbed, testbed
from console import overview
from outbox import admin
from outbox.admin import PayloadField, Selection
from outbox.settings import Settings

DATABASE = "bench"
EVENTS = 10_000_000
DAYS = 6
ROWS_PER_TRANSACTION = 2000
EMPTY_TICKS = 100
"""Ticks after each that has events: as many as with small transactions."""
RETRYING, DEAD = 500, 200
"""One event in so many is retried, and one in so many dead."""
NAMES = 5
LONGEST = 300.0
"""Milliseconds within which `outbox status` is to answer."""


def run(*, repeat: int, quick: bool, events: int | None = None) -> Report:
    """Make the past once and ask each question `repeat` times, after one that warms the caches."""
    count = events or (100_000 if quick else EVENTS)
    with testbed() as bed:
        bed.create(DATABASE)
        began = time.monotonic()
        fill(bed, count)
        say(f"  {count:,} events made in {time.monotonic() - began:.0f} s, {size(bed):,.1f} GiB")
        settings = Settings(
            database_url=bed.postgres.url(DATABASE),
            redis_url=bed.redis_server.url,
            _env_file=None,
        )
        sides = tuple(ask(name, question, repeat) for name, question in questions(bed, settings).items())
        processor = status_processor(bed, repeat)
        command = ask("the command, as a process", lambda: by_command(bed), repeat)
    return Report(
        name="status",
        title=f"Status: {count:,} events and deliveries of {DAYS} days, {NAMES + 2} handlers",
        sides=(*sides, processor, command),
        figures=(
            Figure("status_ms", "status, both sides, ms", sides[0].median, LONGEST, at_most=True),
            Figure("status_processor_ms", "status, the server's processor time, ms", processor.median),
        ),
        notes=("the first run of each is left out; a connection of its own for each",),
        details={"events": count},
    )


def questions(bed: Testbed, settings: Settings) -> dict[str, Callable[[], object]]:
    """What a person asks, and the function behind it."""
    with bed.connect(DATABASE) as connection:
        row = connection.execute(
            "SELECT id FROM outbox.event WHERE created_at > now() - interval '3 days' LIMIT 1"
        ).fetchone()
    if row is None:
        raise MeasurementError("there is no event of three days ago")
    rare = Selection(payload=(PayloadField.parse("payload.order_id=7"),))
    return {
        "status": lambda: overview.look(settings),
        "status ID": lambda: admin.story(settings, row[0]),
        "events": lambda: admin.events(settings),
        "events --key": lambda: admin.events(settings, Selection(key="customer-7")),
        "events --where, of an event long ago": lambda: admin.events(settings, rare),
        "dead": lambda: admin.dead_letters(settings),
        "dead --groups": lambda: admin.error_groups(settings),
    }


def ask(name: str, question: Callable[[], object], repeat: int) -> Side:
    """How long a question takes, in milliseconds."""
    runs = []
    for number in range(repeat + 1):
        began = time.perf_counter()
        question()
        if number:
            runs.append((time.perf_counter() - began) * 1000)
    say(f"  {name}: {sorted(runs)[len(runs) // 2]:,.0f} ms")
    return Side(name, "ms", tuple(runs))


def status_processor(bed: Testbed, repeat: int) -> Side:
    """Processor time of the server's session in milliseconds: what is left of `status` on an idle machine."""
    runs = []
    with bed.connect(DATABASE, prepare_threshold=None) as connection:
        admin.status(connection)
        for _ in range(repeat):
            before = processor_time(connection.info.backend_pid)
            admin.status(connection)
            runs.append((processor_time(connection.info.backend_pid) - before) * 1000)
    return Side("status, the server's processor time", "ms", tuple(runs))


def processor_time(pid: int) -> float:
    """Seconds that a process has been running on a processor so far."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def by_command(bed: Testbed) -> None:
    """`outbox status` from its start to its end."""
    environment = os.environ | bed.settings(DATABASE)
    subprocess.run([sys.executable, "-m", "console.main", "status"], env=environment, check=True, capture_output=True)


def fill(bed: Testbed, events: int) -> None:
    """Make the past of `events`, and streams that end with it."""
    text = (files(__package__) / "status.sql").read_text()
    values = {"total": events, "days": DAYS, "retrying": RETRYING, "dead": DEAD}
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    with bed.connect(DATABASE) as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute("SELECT outbox.make_partitions(current_date - %s, current_date)", [DAYS + 1])
        for first in range(0, events, ROWS_PER_TRANSACTION):
            last = min(first + ROWS_PER_TRANSACTION, events) - 1
            connection.execute(text.replace("{first}", str(first)).replace("{last}", str(last)).encode())
            if first == 0:
                beginning = tick(connection)
            else:
                tick(connection)
            if first % (events // 20 // ROWS_PER_TRANSACTION * ROWS_PER_TRANSACTION or ROWS_PER_TRANSACTION) == 0:
                say(f"  {first:,} events")
        register(connection, beginning)
        connection.execute("VACUUM ANALYZE")
    for number in range(NAMES):
        key = f"outbox:{{bench{number}}}"
        bed.redis.xadd(key, {"id": "x"})
        try:
            bed.redis.xgroup_create(key, f"handler{number}", "$")
        except redis.ResponseError as error:
            raise MeasurementError(str(error)) from error


def tick(connection: psycopg.Connection) -> int:
    """A published tick and those after it that saw nothing; the id of the first."""
    row = connection.execute(
        "WITH made AS (INSERT INTO outbox.tick (id, snapshot, count)"
        "  SELECT (SELECT max(id) FROM outbox.tick) + n, pg_current_snapshot(), CASE WHEN n = 1 THEN %s ELSE 0 END"
        "    FROM generate_series(1, %s) AS n RETURNING id) SELECT min(id) FROM made",
        [ROWS_PER_TRANSACTION, 1 + EMPTY_TICKS],
    ).fetchone()
    assert row is not None
    return int(row[0])


def register(connection: psycopg.Connection, beginning: int) -> None:
    """The handlers: one of each name, of which one is stuck near the beginning, and two that have only begun."""
    connection.execute(
        "UPDATE outbox.relay SET (tick, seq) = (SELECT max(id), (SELECT max(seq) FROM outbox.event) FROM outbox.tick)"
    )
    connection.execute(
        "INSERT INTO outbox.handler (name, event_name, attached, done_tick, done_seq)"
        " SELECT 'handler' || n, 'bench' || n, true, CASE WHEN n = 2 THEN %s ELSE r.tick END,"
        "        CASE WHEN n = 2 THEN 2 ELSE r.seq END"
        "   FROM outbox.relay AS r, generate_series(0, %s) AS n",
        [beginning, NAMES - 1],
    )
    connection.execute(
        "INSERT INTO outbox.handler (name, event_name, attached, done_tick, done_seq, fed_tick, fed_seq)"
        " SELECT 'late' || n, 'bench' || n, false, 0, 0, 0, 0 FROM generate_series(0, 1) AS n"
    )


def size(bed: Testbed) -> float:
    """The database in GiB."""
    with bed.connect(DATABASE) as connection:
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    assert row is not None
    return float(row[0]) / 2**30
