"""Whether a worker's memory stays as it is while it handles a million events."""

from __future__ import annotations

import time

from benchmarks import backlog, subscription
from benchmarks.program import Program
from benchmarks.report import Figure, Report, Side, number
from benchmarks.rounds import MeasurementError, say, wait_until
from benchmarks.testbed import Testbed, testbed

DATABASE = "bench"
HANDLER = "plain"
LOOKS = 10
SETTLED = 2
"""The look from which on nothing may grow: before it buffers and caches reach their size."""
PATIENCE = 120
"""Seconds within which the next tenth must be done."""


def run(*, repeat: int, quick: bool) -> Report:
    """Look at a worker ten times on its way through the events; `repeat` times."""
    events = 100_000 if quick else 1_000_000
    with testbed() as bed:
        say(f"soak: {events:,} events, a look at the worker's memory after each tenth")
        ways = []
        for turn in range(1, repeat + 1):
            ways.append(way(bed, events))
            say(f"  {turn}/{repeat}  " + " ".join(f"{size:.1f}" for size in ways[-1]) + " MiB")
    growth = [max(sizes[SETTLED:]) - sizes[SETTLED - 1] for sizes in ways]
    return Report(
        name="soak",
        title=f"Soak: a worker's memory over {events:,} events of a plain handler",
        sides=(
            Side("resident after each tenth", "MiB", tuple(size for sizes in ways for size in sizes)),
            Side(f"most after {SETTLED} tenths, less what it was then", "MiB", tuple(growth)),
        ),
        figures=(
            Figure("worker_growth_mib", "a worker after its first two tenths, MiB more", max(growth), 5, at_most=True),
            Figure("worker_mib", "a worker's memory, MiB", max(max(sizes) for sizes in ways)),
        ),
        notes=("a relay publishes while the worker works; the memory is what the kernel calls resident",),
        details={"events": events, "mib": [[round(size, 1) for size in sizes] for sizes in ways]},
    )  # fmt: skip


def way(bed: Testbed, events: int) -> list[float]:
    """The worker's memory in MiB after each tenth of the events."""
    bed.redis.flushall()
    bed.create(DATABASE)
    subscription.attach(bed, DATABASE, {HANDLER: backlog.event_name(0)})
    with bed.connect(DATABASE) as connection:
        backlog.write(connection, "outbox.event", events=events)
    with bed.relay(DATABASE) as relay, bed.worker(DATABASE, f"benchmarks.handlers:{HANDLER}_app") as worker:
        sizes = []
        for look in range(1, LOOKS + 1):
            wait_until(
                lambda wanted=events * look // LOOKS: (  # type: ignore[misc]
                    relay.running() and worker.running() and done(bed) >= wanted
                ),
                f"tenth {look} of {number(events)} events",
                timeout=PATIENCE,
                every=0.2,
            )
            sizes.append(resident(worker))
        # What it does when the work has ended belongs to it: the last look comes a moment later.
        time.sleep(1)
        sizes[-1] = max(sizes[-1], resident(worker))
    return sizes


def done(bed: Testbed) -> int:
    """Deliveries that are done."""
    with bed.connect(DATABASE) as connection:
        row = connection.execute("SELECT count(*) FROM outbox.delivery WHERE state = 'done'").fetchone()
    return int(row[0]) if row else 0


def resident(worker: Program) -> float:
    """The worker's memory in MiB. Raises `MeasurementError` where the kernel does not tell."""
    size = worker.memory()
    if size is None:
        raise MeasurementError("this system does not tell how much memory a process has")
    return size
