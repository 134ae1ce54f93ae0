"""What a relay and a worker cost while nothing happens, and how soon the relay is there when something does."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import psycopg
import redis

from benchmarks import backlog, subscription
from benchmarks.program import Program
from benchmarks.report import Figure, Report, Side, percentile
from benchmarks.rounds import say, wait_until
from benchmarks.testbed import Testbed, testbed
from outbox.names import stream_key

DATABASE = "bench"
BURST = 1000
"""Events that a large transaction adds after the calm."""
REQUESTS = 100
"""Transactions of one event each, one right after the other, as endpoints add them."""
CALM = 3.0
"""Seconds without events before a burst."""
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
IDLE_HANDLERS = 30
"""Handlers of the worker that has nothing to do."""


def idle_event(number: int) -> str:
    """The event of one of these handlers, which has its name too."""
    return f"idle{number}"


def run(*, repeat: int, quick: bool) -> Report:
    """Be idle, then end the calm again and again; `repeat` times."""
    seconds, bursts = (10.0, 5) if quick else (30.0, 20)
    share: list[float] = []
    worker_share: list[float] = []
    burned: list[float] = []
    requests: list[tuple[float, float]] = []
    large: list[tuple[float, float]] = []
    with testbed() as bed:
        say(f"idle: {seconds:.0f} s of nothing, then {bursts} bursts of {REQUESTS} and as many of {BURST:,} events")
        for turn in range(1, repeat + 1):
            bed.create(DATABASE)
            bed.redis.flushall()
            name = backlog.event_name(0)
            subscription.register(bed, DATABASE, {"reacts": name})
            with bed.relay(DATABASE) as relay, bed.connect(DATABASE) as connection:
                await_sleep(bed, relay, connection, name)
                busy, spent = idle(relay, connection, seconds)
                share.append(busy * 100)
                burned.append(spent)
                for _ in range(bursts):
                    requests.append(burst(bed, connection, name, transactions=REQUESTS, events=1))
                    large.append(burst(bed, connection, name, transactions=1, events=BURST))
                worker_share.append(idle_worker(bed, seconds) * 100)
            p50 = percentile([first for first, _ in requests], 0.5)
            say(f"  {turn}/{repeat}  {share[-1]:.2f} % of a core, first event after {p50:.2f} ms")
    sides = (
        Side("idle relay", "% of a core", tuple(share)),
        Side(f"idle worker with {IDLE_HANDLERS} handlers", "% of a core", tuple(worker_share)),
        Side("transaction ids burned while idle", "ids", tuple(burned)),
        Side(f"first COMMIT begins → first of {REQUESTS} in Redis", "ms", tuple(first for first, _ in requests)),
        Side(f"first COMMIT begins → all {REQUESTS} in Redis", "ms", tuple(last for _, last in requests)),
        Side(f"COMMIT of {BURST:,} begins → first in Redis", "ms", tuple(first for first, _ in large)),
        Side(f"COMMIT of {BURST:,} begins → all in Redis", "ms", tuple(last for _, last in large)),
    )
    return Report(
        name="idle",
        title="Idle: a relay and a worker with nothing to do; then bursts",
        sides=sides,
        figures=(
            Figure("idle_percent", "an idle relay's share of a core, %", sides[0].median, 0.5, at_most=True),
            Figure(
                "idle_worker_percent",
                f"an idle worker's share of a core, {IDLE_HANDLERS} handlers, %",
                sides[1].median,
                0.5,
                at_most=True,
            ),
            Figure("idle_xids", "transaction ids an idle relay burns", max(burned), 0, at_most=True),
            Figure(
                "first_p50_ms", "the first event of a burst is in Redis within, ms", sides[3].median, 5, at_most=True
            ),
            Figure("first_large_p50_ms", f"the first of {BURST:,} in one transaction, ms", sides[5].median),
        ),
        notes=(f"each burst after {CALM:.0f} s of calm: {REQUESTS} transactions in a row, or one of {BURST:,} events",),
        details={"seconds": seconds, "bursts": bursts, "requests": REQUESTS, "burst": BURST},
    )


def await_sleep(bed: Testbed, relay: Program, connection: psycopg.Connection, name: str) -> None:
    """Wait until the relay serves the handler and has fallen asleep."""
    wait_until(
        lambda: relay.running() and subscription.attached(bed, DATABASE, {"reacts": name}),
        "the relay attaches the handler",
        timeout=30,
    )
    wait_until(lambda: asleep(connection), "the relay sleeps", timeout=30)


def asleep(connection: psycopg.Connection) -> bool:
    """Whether writers are asked to notify."""
    row = connection.execute(
        "SELECT coalesce(pg_sequence_last_value('outbox.asleep'), 0) > extract(epoch FROM clock_timestamp())"
    ).fetchone()
    return row is not None and bool(row[0])


def idle(relay: Program, connection: psycopg.Connection, seconds: float) -> tuple[float, float]:
    """The relay's share of a core, and how many transaction ids the server gave out."""
    used, ids, began = cpu_seconds(relay), next_id(connection), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(relay) - used) / (time.monotonic() - began), next_id(connection) - ids


def idle_worker(bed: Testbed, seconds: float) -> float:
    """The share of a core that a worker takes whose handlers are all attached and have nothing to do."""
    handlers = {idle_event(number): idle_event(number) for number in range(IDLE_HANDLERS)}
    with bed.worker(DATABASE, "benchmarks.handlers:idle_app") as worker:
        wait_until(
            lambda: worker.running() and subscription.attached(bed, DATABASE, handlers),
            "the relay attaches the worker's handlers",
            timeout=30,
        )
        # What it does at its start, and once a second for its handlers' rows, has been done.
        time.sleep(CALM)
        used, began = cpu_seconds(worker), time.monotonic()
        time.sleep(seconds)
        return (cpu_seconds(worker) - used) / (time.monotonic() - began)


def cpu_seconds(program: Program) -> float:
    """Processor time of a process so far, user and system."""
    fields = Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def next_id(connection: psycopg.Connection) -> int:
    """The transaction id that the server gives out next."""
    row = connection.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone()
    assert row is not None
    return int(row[0])


def burst(
    bed: Testbed, connection: psycopg.Connection, name: str, *, transactions: int, events: int
) -> tuple[float, float]:
    """End a calm; return the milliseconds from the first COMMIT until the first and until all events are in Redis."""
    key = stream_key("outbox", name)
    time.sleep(CALM)
    wait_until(lambda: asleep(connection), "the relay sleeps", timeout=30)
    seen: list[float] = []
    listening = threading.Event()
    before = bed.redis.xinfo_stream(key)["entries-added"]

    def listen() -> None:
        with redis.Redis.from_url(bed.redis_server.url) as client:
            at = client.xinfo_stream(key)["last-generated-id"]
            listening.set()
            client.xread({key: at}, block=10_000, count=1)
            seen.append(time.monotonic())

    listener = threading.Thread(target=listen)
    listener.start()
    listening.wait()
    began = []
    for _ in range(transactions):
        with connection.transaction():
            connection.execute(
                "INSERT INTO outbox.event (name, key, payload)"
                " SELECT %s, 'customer-' || n, json_build_object('order_id', n) FROM generate_series(1, %s) AS n",
                [name, events],
            )
            began.append(time.monotonic())
    listener.join()
    wait_until(
        lambda: bed.redis.xinfo_stream(key)["entries-added"] - before >= transactions * events,
        "the burst in Redis",
        timeout=30,
        every=0.001,
    )
    return (seen[0] - began[0]) * 1000, (time.monotonic() - began[0]) * 1000
