"""Whether a worker's memory stays as it is while it handles very many events, with each kind of handler."""

from __future__ import annotations

import time

from benchmarks import backlog, subscription
from benchmarks.program import Program
from benchmarks.report import Figure, Report, Side, number
from benchmarks.rounds import MeasurementError, say, wait_until
from benchmarks.testbed import Testbed, testbed

DATABASE = "bench"
EVENTS = {"plain": 1_000_000, "transactional": 100_000, "thread": 100_000}
"""How many events a worker with each of these handlers gets."""
GROWTH = {
    "plain": "worker_growth_mib",
    "transactional": "worker_growth_transactional_mib",
    "thread": "worker_growth_thread_mib",
}
LOOKS = 10
SETTLED = 2
"""The look from which on nothing may grow: before it buffers and caches reach their size."""
PATIENCE = 120
"""Seconds within which the next tenth must be done."""


def run(*, repeat: int, quick: bool) -> Report:
    """Look at a worker ten times on its way through the events, for each kind of handler; `repeat` times."""
    counts = {handler: events // 10 if quick else events for handler, events in EVENTS.items()}
    ways: dict[str, list[list[float]]] = {handler: [] for handler in counts}
    with testbed() as bed:
        for turn in range(1, repeat + 1):
            for handler, events in counts.items():
                say(f"soak: {events:,} events of a {handler} handler, a look at the worker's memory after each tenth")
                ways[handler].append(way(bed, handler, events))
                say(f"  {turn}/{repeat}  " + " ".join(f"{size:.1f}" for size in ways[handler][-1]) + " MiB")
    growth = {handler: [max(sizes[SETTLED:]) - sizes[SETTLED - 1] for sizes in seen] for handler, seen in ways.items()}
    sides = []
    for handler, seen in ways.items():
        sides.append(
            Side(f"{handler}: resident after each tenth", "MiB", tuple(size for sizes in seen for size in sizes))
        )
        sides.append(
            Side(f"{handler}: most after {SETTLED} tenths, less what it was then", "MiB", tuple(growth[handler]))
        )
    return Report(
        name="soak",
        title="Soak: a worker's memory over " + ", ".join(f"{n:,} {handler}" for handler, n in counts.items()),
        sides=tuple(sides),
        figures=(
            *(
                Figure(
                    GROWTH[handler],
                    f"a worker with a {handler} handler after its first two tenths, MiB more",
                    max(grown),
                    5,
                    at_most=True,
                )
                for handler, grown in growth.items()
            ),
            Figure("worker_mib", "a worker's memory, MiB", max(max(sizes) for sizes in ways["plain"])),
        ),
        notes=("a relay publishes while the worker works; the memory is what the kernel calls resident",),
        details={
            "events": counts,
            "mib": {h: [[round(size, 1) for size in sizes] for sizes in seen] for h, seen in ways.items()},
        },
    )


def way(bed: Testbed, handler: str, events: int) -> list[float]:
    """The worker's memory in MiB after each tenth of the events."""
    bed.redis.flushall()
    bed.create(DATABASE)
    subscription.attach(bed, DATABASE, {handler: backlog.event_name(0)})
    with bed.connect(DATABASE) as connection:
        backlog.write(connection, "outbox.event", events=events)
    with bed.relay(DATABASE) as relay, bed.worker(DATABASE, f"benchmarks.handlers:{handler}_app") as worker:
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
