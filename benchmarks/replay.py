"""How fast dead letters are put back and run again, and what live events of the same handler notice of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import subscription
from benchmarks.latency import LATENCY_FILE
from benchmarks.processor import process_seconds
from benchmarks.program import Program
from benchmarks.report import Figure, Report, Side, percentile
from benchmarks.rounds import say, wait_until
from benchmarks.testbed import Testbed, testbed
from outbox import admin

DATABASE = "bench"
PER_SECOND = 50
HANDLER = "started"
STATEMENT = Path(__file__).with_suffix(".sql")
PART = 10_000
"""Rows that are prepared in one transaction."""
WARM_UP = 1.0
"""Seconds at the beginning of each phase that are sent and not counted."""


@dataclass(frozen=True)
class Round:
    """One round: seconds until all was put back, and until all had run; processor seconds of who put back and of the
    worker; milliseconds until live events started, before the replay and during it."""

    put_back: float
    done: float
    putting: float
    working: float
    before: Sequence[float]
    during: Sequence[float]


def run(*, repeat: int, quick: bool) -> Report:
    """Replay 100,000 dead letters (`quick`: 10,000) beside 50 live events a second, `repeat` times."""
    events = 10_000 if quick else 100_000
    rounds: list[Round] = []
    with testbed() as bed:
        say(f"replay: {events:,} dead letters beside {PER_SECOND} live events/s of the same handler")
        for turn in range(1, repeat + 1):
            rounds.append(once(bed, events))
            last = rounds[-1]
            say(
                f"  {turn}/{repeat}  put back at {events / last.put_back:,.0f}/s, done at {events / last.done:,.0f}/s;"
                f" live p50 {percentile(last.before, 0.5):.2f} → {percentile(last.during, 0.5):.2f} ms"
            )
    rates = Side("put back", "events/s", tuple(events / each.put_back for each in rounds))
    done = Side("run again by one worker", "events/s", tuple(events / each.done for each in rounds))
    before = Side("live events before, p50", "ms", tuple(percentile(each.before, 0.5) for each in rounds))
    during = Side("live events meanwhile, p50", "ms", tuple(percentile(each.during, 0.5) for each in rounds))
    slowest = Side("live events meanwhile, p99", "ms", tuple(percentile(each.during, 0.99) for each in rounds))
    putting = Side("processor, putting back 1,000", "ms", tuple(1e6 * each.putting / events for each in rounds))
    working = Side("processor, worker, for 1,000", "ms", tuple(1e6 * each.working / events for each in rounds))
    return Report(
        name="replay",
        title=f"Replay: {events:,} dead letters beside live events, one relay, one worker",
        sides=(rates, done, before, during, slowest, putting, working),
        figures=(
            Figure("replay_put_back_per_s", "put back, events/s", rates.median, 3000),
            Figure("replay_done_per_s", "run again by one worker, events/s", done.median, 3000),
            Figure("replay_live_p99_ms", "99 of 100 live events start within, ms", slowest.median, 1000, at_most=True),
        ),
        details={"events": events, "per_second": PER_SECOND},
    )


def once(bed: Testbed, events: int) -> Round:
    """One round on a database of its own."""
    prepare(bed, events)
    found = bed.folder / "replay.txt"
    found.unlink(missing_ok=True)
    app = "benchmarks.handlers:latency_app"
    with bed.relay(DATABASE) as relay, bed.worker(DATABASE, app, **{LATENCY_FILE: str(found)}) as worker:
        wait_until(
            lambda: (
                relay.running() and worker.running() and subscription.attached(bed, DATABASE, {HANDLER: "order_placed"})
            ),
            "the relay attaches the worker's handler",
            timeout=60,
        )
        with live(bed, 6.0) as writer:
            wait_until(lambda: not writer.running(), "the writer ends", timeout=60, every=0.1)
        calm = delays(found)
        with live(bed, 300.0):
            wait_until(lambda: len(delays(found)) > len(calm) + WARM_UP * PER_SECOND, "live events come", timeout=60)
            quiet = len(delays(found))
            worked, began, spent = process_seconds(worker.pid), time.monotonic(), time.process_time()
            admin.replay(bed.postgres.url(DATABASE), admin.Selection(handler=HANDLER))
            put_back, putting = time.monotonic() - began, time.process_time() - spent
            wait_until(lambda: worker.running() and waiting(bed) == 0, "all have run", timeout=300, every=0.05)
            done = time.monotonic() - began
            working = process_seconds(worker.pid) - worked
            meanwhile = delays(found)[quiet:]
    return Round(put_back, done, putting, working, calm[round(WARM_UP * PER_SECOND) :], meanwhile)


def prepare(bed: Testbed, events: int) -> None:
    """A database with so many dead letters, and an empty Redis."""
    bed.create(DATABASE)
    bed.redis.flushall()
    statement = STATEMENT.read_text()
    with bed.connect(DATABASE) as connection:
        for first in range(0, events, PART):
            last = min(events, first + PART) - 1
            connection.execute(statement.replace("{first}", str(first)).replace("{last}", str(last)).encode())
        connection.execute("ANALYZE")


def live(bed: Testbed, seconds: float) -> Program:
    """A writer of live events for so long, or until it is stopped."""
    return bed.module("writer", str(PER_SECOND), str(seconds), str(bed.folder / "commits.txt"), database=DATABASE)


def delays(found: Path) -> list[float]:
    """Milliseconds until each live event started so far, in the order of their starts."""
    if not found.exists():
        return []
    lines = (line.split() for line in found.read_bytes().split(b"\n")[:-1])
    return [(int(started) - int(sent)) / 1e6 for sent, started in lines if sent != b"0"]


def waiting(bed: Testbed) -> int:
    """Deliveries that are still to run."""
    with bed.connect(DATABASE) as connection:
        row = connection.execute("SELECT count(*) FROM outbox.delivery WHERE state = 'retrying'").fetchone()
    assert row is not None
    return int(row[0])
