"""How long it takes from `outbox.add` and COMMIT until the handler starts, at a calm 50 events per second."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import subscription
from benchmarks.report import Figure, Report, Side, percentile
from benchmarks.rounds import MeasurementError, say, wait_until
from benchmarks.testbed import Testbed, testbed

DATABASE = "bench"
PER_SECOND = 50
LATENCY_FILE = "OUTBOX_BENCH_LATENCY_FILE"
"""Environment variable of the worker: where its handler writes when it started."""
COMMITS = "commits.txt"
WHOLE = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
PARTS = {"p50": 0.5, "p99": 0.99}
COMMIT, AFTER = "the writer's add and COMMIT, ", "after COMMIT returned, "
WARM_UP = 2.0
"""Seconds at the beginning that are sent and not counted."""


def run(*, repeat: int, quick: bool) -> Report:
    """Send for twenty seconds (`quick`: five), `repeat` times; the figures are medians of the runs' percentiles."""
    seconds = 5.0 if quick else 20.0
    runs: list[Sequence[float]] = []
    commits: list[Sequence[float]] = []
    with testbed() as bed:
        say(f"latency: {PER_SECOND} events/s for {seconds:.0f} s a run")
        for turn in range(1, repeat + 1):
            runs.append(delays(bed, seconds))
            commits.append(commit_times(bed))
            say(f"  {turn}/{repeat}  p50 {percentile(runs[-1], 0.5):.2f} ms, p99 {percentile(runs[-1], 0.99):.2f} ms")
    after = [[delay - commit for delay, commit in zip(*pair, strict=True)] for pair in zip(runs, commits, strict=True)]
    sides = {
        f"{part}{name}": Side(f"{part}{name}", "ms", tuple(percentile(found, share) for found in measured))
        for part, measured, shares in (("", runs, WHOLE), (COMMIT, commits, PARTS), (AFTER, after, PARTS))
        for name, share in shares.items()
    }
    return Report(
        name="latency",
        title=f"Latency: `add` + COMMIT begins → handler starts, {PER_SECOND} events/s, one relay, one worker",
        sides=tuple(sides.values()),
        figures=(
            Figure("p50_ms", "half of the handlers start within, ms", sides["p50"].median, 4, at_most=True),
            Figure("p99_ms", "99 of 100 handlers start within, ms", sides["p99"].median, 10, at_most=True),
            Figure("max_ms", "the slowest start of all runs, ms", max(sides["max"].runs), at_most=True),
        ),
        notes=(f"{sum(map(len, runs)):,} events counted",),
        details={"per_second": PER_SECOND, "seconds": seconds},
    )


def commit_times(bed: Testbed) -> list[float]:
    """What `add` and COMMIT took the last run's writer, in milliseconds."""
    lines = (bed.folder / COMMITS).read_text().splitlines()
    return [int(line) / 1e6 for line in lines[round(WARM_UP * PER_SECOND) :]]


def delays(bed: Testbed, seconds: float) -> list[float]:
    """One run with a relay, a worker and a writer of its own: the delay of every event that counts, in milliseconds."""
    bed.create(DATABASE)
    bed.redis.flushall()
    found = bed.folder / "latency.txt"
    found.unlink(missing_ok=True)
    expected = round((WARM_UP + seconds) * PER_SECOND)
    times = (str(PER_SECOND), str(WARM_UP + seconds))
    handler = {"started": "order_placed"}
    environment = {LATENCY_FILE: str(found)}
    with bed.relay(DATABASE) as relay, bed.worker(DATABASE, "benchmarks.handlers:latency_app", **environment) as worker:
        programs = (relay, worker)
        wait_until(
            lambda: all(p.running() for p in programs) and subscription.attached(bed, DATABASE, handler),
            "the relay attaches the worker's handler",
            timeout=30,
        )
        with bed.module("writer", *times, str(bed.folder / COMMITS), database=DATABASE) as writer:
            wait_until(lambda: not writer.running(), "the writer ends", timeout=60 + 2 * seconds, every=0.2)
        wait_until(
            lambda: (
                all(p.running() for p in programs) and found.exists() and found.read_bytes().count(b"\n") >= expected
            ),
            "every handler starts",
            timeout=30,
            every=0.1,
        )
    pairs = sorted(tuple(map(int, line.split())) for line in found.read_text().splitlines())
    if len(pairs) != expected:
        raise MeasurementError(f"{expected} events were sent and {len(pairs)} handlers started")
    return [(started - sent) / 1e6 for sent, started in pairs[round(WARM_UP * PER_SECOND) :]]
