"""One handler at a hundredth of its sibling's speed, then sped up: does the sibling notice, and does anything grow?"""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psycopg

from benchmarks import processor, subscription
from benchmarks.processor import Spent
from benchmarks.program import Program
from benchmarks.report import Figure, Report, Side, percentile
from benchmarks.rounds import MeasurementError, say, wait_until
from benchmarks.testbed import Testbed, testbed
from relay import bounds

DATABASE = "bench"
EVENT_NAME = "parcel_sent"
HANDLERS = {"quick": EVENT_NAME, "laggard": EVENT_NAME}

PER_SECOND = 4000
LAGGARD_CONCURRENCY = 10
LAGGARD_SECONDS = LAGGARD_CONCURRENCY * 100 / PER_SECOND
"""What one run of the laggard takes while it is slow: all together are a hundred times slower than the events come."""

SLOW_FILE = "OUTBOX_BENCH_SLOW_FILE"
"""Environment variable of the laggard's worker: the file that makes it slow while it exists."""
STARTS_FILE = "OUTBOX_BENCH_STARTS_FILE"
"""Environment variable of both workers: where a handler notes each start, as number, time sent and time started."""

FEWEST = bounds.MAIN.entries + 50_000
"""Events with which the stream becomes full and the laggard stays detached for a while."""
CALM = 10.0
"""Seconds at the steady rate before the laggard lags, and after it has been attached again."""
WARM_UP = 3.0
"""Seconds of that which are not counted."""
EVERY = 0.25
"""Seconds between two looks."""

BEFORE, LAGGING, CATCHING_UP, AFTER = "before", "while it lags", "while it catches up", "afterwards"


@dataclass(frozen=True)
class Look:
    """What was seen at one moment. Sizes are in MiB."""

    at: int
    written: int
    redis: float
    attached: bool


@dataclass
class Watch:
    """Looks at everything while the programs run, and keeps what it saw."""

    bed: Testbed
    connection: psycopg.Connection
    programs: Sequence[Program]
    looks: list[Look] = field(default_factory=list)

    def look(self) -> Look:
        """One more look, after making sure that every program still runs."""
        for program in self.programs:
            program.running()
        query = (
            "SELECT coalesce(pg_sequence_last_value('outbox.event_seq'), 0),"
            " (SELECT attached FROM outbox.handler WHERE name = 'laggard')"
        )
        row = self.connection.execute(query).fetchone()
        assert row is not None
        redis = self.bed.redis.info("memory")["used_memory"] / 2**20
        self.looks.append(Look(time.monotonic_ns(), row[0], redis, row[1]))
        return self.looks[-1]

    def until_written(self, events: int) -> int:
        """Wait until so many events are written; returns when, in nanoseconds."""
        seconds = 30 + 3 * events / PER_SECOND
        wait_until(
            lambda: self.look().written >= events, f"{events:,} events are written", timeout=seconds, every=EVERY
        )
        return self.looks[-1].at

    def until_attached(self) -> int:
        """Wait until the laggard is attached; returns when, in nanoseconds."""
        wait_until(lambda: self.look().attached, "the laggard catches up and is attached", timeout=600, every=EVERY)
        return self.looks[-1].at


@dataclass(frozen=True)
class Starts:
    """When a handler was started, and for which event: one value of each for every start. Times in nanoseconds."""

    numbers: array[int]
    sent: array[int]
    started: array[int]

    @classmethod
    def read(cls, file: Path) -> Starts:
        """What the handlers noted."""
        values = array("q", file.read_bytes())
        return cls(values[0::3], values[1::3], values[2::3])

    def delays(self, begin: int, end: int) -> list[float]:
        """Milliseconds from the write to the start, of the events that were sent between two moments."""
        return [(at - sent) / 1e6 for sent, at in zip(self.sent, self.started, strict=True) if begin <= sent < end]


@dataclass(frozen=True)
class Course:
    """One run: its moments in nanoseconds, what was seen meanwhile, and what the relay cost."""

    begun: int
    slowed: int
    sped_up: int
    attached: int
    looks: Sequence[Look]
    starts: Starts
    events: int
    relay_peak: float
    spent: Spent

    def phases(self) -> dict[str, tuple[int, int]]:
        """From when to when each phase took."""
        return {
            BEFORE: (self.begun + round(WARM_UP * 1e9), self.slowed),
            LAGGING: (self.slowed, self.sped_up),
            CATCHING_UP: (self.sped_up, self.attached),
            AFTER: (self.attached, self.looks[-1].at),
        }

    def detached_redis(self) -> list[float]:
        """Redis' memory while the laggard was slow and fed from PostgreSQL."""
        return [look.redis for look in self.looks if not look.attached and look.at < self.sped_up]


def run(*, events: int) -> Report:
    """Measure once: ten seconds of calm, `events` while the laggard is slow, then as long as it takes to catch up.

    Raises `MeasurementError` when an event is lost or doubled, or the laggard does not end attached.
    """
    with testbed() as bed:
        say(f"laggard: {PER_SECOND:,} events/s, {events:,} of them while one handler is slow")
        course = measure(bed, events)
    return report(course)


def measure(bed: Testbed, events: int) -> Course:
    """The run."""
    bed.create(DATABASE)
    slow = bed.folder / "slow"
    files = {name: bed.folder / f"{name}.starts" for name in HANDLERS}
    with bed.connect(DATABASE) as connection, ExitStack() as stack:
        relay = stack.enter_context(bed.relay(DATABASE))
        workers = [
            stack.enter_context(bed.worker(DATABASE, f"benchmarks.handlers:{name}_app", **environment(file, slow)))
            for name, file in files.items()
        ]
        watch = Watch(bed, connection, (relay, *workers))
        wait_until(
            lambda: relay.running() and subscription.attached(bed, DATABASE, HANDLERS), "both attached", timeout=30
        )
        cost = processor.spent(bed, DATABASE, relay.pid)
        calm = round(CALM * PER_SECOND)
        with bed.module("steady", EVENT_NAME, str(PER_SECOND), database=DATABASE):
            begun = time.monotonic_ns()
            slowed = watch.until_written(calm)
            slow.touch()
            say("  the laggard is slow")
            sped_up = watch.until_written(calm + events)
            if watch.looks[-1].attached:
                raise MeasurementError("the laggard was still attached when it was sped up")
            slow.unlink()
            say(f"  sped up, after {(sped_up - slowed) / 1e9:.0f} s")
            attached = watch.until_attached()
            say(f"  attached again, {(attached - sped_up) / 1e9:.0f} s later")
            watch.until_written(watch.looks[-1].written + calm)
        written = finished(connection, watch)
        cost = processor.spent(bed, DATABASE, relay.pid) - cost
        peak = relay.peak_memory() or 0.0
    starts = {name: Starts.read(file) for name, file in files.items()}
    for name, noted in starts.items():
        if len(noted.numbers) != written or len(set(noted.numbers)) != written:
            found = f"{len(noted.numbers):,} starts of {len(set(noted.numbers)):,} events"
            raise MeasurementError(f"{name}: {written:,} events were written, and there were {found}")
    return Course(begun, slowed, sped_up, attached, watch.looks, starts["quick"], written, peak, cost)


def environment(starts: Path, slow: Path) -> dict[str, str]:
    """What the handlers are told."""
    return {STARTS_FILE: str(starts), SLOW_FILE: str(slow)}


def finished(connection: psycopg.Connection, watch: Watch) -> int:
    """Wait for every event's outcome at both handlers; returns how many events there are."""
    row = connection.execute("SELECT count(*) FROM outbox.event").fetchone()
    assert row is not None
    done = "SELECT handler, count(*) FROM outbox.delivery WHERE state = 'done' AND attempts = 1 GROUP BY handler"
    expected = dict.fromkeys(HANDLERS, row[0])
    wait_until(lambda: dict(connection.execute(done).fetchall()) == expected, "all done once", timeout=60, every=1)
    if not watch.look().attached:
        raise MeasurementError("the laggard was detached again")
    return int(row[0])


def report(course: Course) -> Report:
    """The figures of a run."""
    delays = {phase: course.starts.delays(*moments) for phase, moments in course.phases().items()}
    sides = [
        Side(f"sibling's {part} {phase}", "ms", (percentile(found, share),))
        for part, share in {"p50": 0.5, "p99": 0.99}.items()
        for phase, found in delays.items()
    ]
    measured = {side.name: side.median for side in sides}

    def times(part: str, phase: str) -> float:
        return measured[f"sibling's {part} {phase}"] / measured[f"sibling's {part} {BEFORE}"]

    detached = course.detached_redis()
    half = len(detached) // 2
    drift = median(detached[half:]) - median(detached[:half])
    sweep = course.spent.share / len(HANDLERS)
    peak = max(look.redis for look in course.looks)
    largest = (bounds.MAIN.size + bounds.CATCH_UP.size) / 2**20
    return Report(
        name="laggard",
        title=f"Laggard: {course.events:,} events at {PER_SECOND:,}/s; one of two handlers takes 1/100 for a while",
        sides=tuple(sides),
        figures=(
            Figure("ratio_p50_lagging", "sibling's p50, lagging / before", times("p50", LAGGING), 1.5, at_most=True),
            Figure("ratio_p99_lagging", "sibling's p99, lagging / before", times("p99", LAGGING), 1.5, at_most=True),
            Figure(
                "ratio_p50_catching_up", "its p50, catching up / before", times("p50", CATCHING_UP), 1.5, at_most=True
            ),
            Figure(
                "ratio_p99_catching_up", "its p99, catching up / before", times("p99", CATCHING_UP), 1.5, at_most=True
            ),
            Figure("redis_peak_mib", "Redis at its peak, MiB", peak, largest, at_most=True),
            Figure("redis_drift_mib", "Redis, later minus earlier while detached, MiB", drift, 1, at_most=True),
            Figure("redis_end_mib", "Redis at the end, MiB", course.looks[-1].redis, at_most=True),
            Figure("laggard_relay_peak_mib", "relay's memory at its peak, MiB", course.relay_peak, 150, at_most=True),
            Figure("ratio_sweep_steady", "processor time, sweep / rest, for a handler", sweep, 0.05, at_most=True),
        ),
        notes=(
            f"lagged for {(course.sped_up - course.slowed) / 1e9:.0f} s, attached again"
            f" {(course.attached - course.sped_up) / 1e9:.0f} s after it was sped up",
            f"nothing lost, nothing doubled: every handler was started {course.events:,} times, once for each event",
        ),
        details={
            "events": course.events,
            "per_second": PER_SECOND,
            "redis_mib": [round(look.redis, 1) for look in course.looks[:: round(5 / EVERY)]],
            "sweep_seconds": round(course.spent.sweep, 2),
            "relay_seconds": round(course.spent.rest, 2),
        },
    )
