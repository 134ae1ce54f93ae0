"""How long a plain handler's event may still be run again: from the end of its run until its outcome is written."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from uuid import UUID

from benchmarks import backlog, worker
from benchmarks.report import Figure, Report, Side, number, percentile
from benchmarks.rounds import MeasurementError, say, wait_until
from benchmarks.testbed import Keys, Testbed, testbed

DATABASE = "bench"
HANDLER = "window"
APP = "benchmarks.handlers:window_app"
WINDOW_FILE = "OUTBOX_BENCH_WINDOW_FILE"
"""Environment variable of the worker: where its handler writes which event it ended, and when."""
RECORD = struct.Struct("=16sq")
SHARES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


def run(*, repeat: int, quick: bool) -> Report:
    """Measure `repeat` times at full speed, and kill a worker in the middle as often."""
    events = 5_000 if quick else 20_000
    windows: list[list[float]] = []
    twice: list[float] = []
    with testbed() as bed:
        say(f"window: {events:,} events wait for a plain handler that does nothing")
        keys = worker.prepare(bed, HANDLER, events)
        for turn in range(1, repeat + 1):
            windows.append(undisturbed(bed, keys, events))
            twice.append(float(killed(bed, keys, events)))
            say(
                f"  {turn}/{repeat}  p50 {number(percentile(windows[-1], 0.5))} ms, "
                f"p99 {number(percentile(windows[-1], 0.99))} ms; run twice after a kill: {twice[-1]:.0f}"
            )
    sides = {
        name: Side(name, "ms", tuple(percentile(window, share) for window in windows)) for name, share in SHARES.items()
    }
    again = Side("run twice after kill -9", "events", tuple(twice))
    return Report(
        name="window",
        title="Window: a plain handler ends → its outcome is in PostgreSQL, one worker at full speed",
        sides=(*sides.values(), again),
        figures=(
            Figure("window_p50_ms", "half of the outcomes are written within, ms", sides["p50"].median, at_most=True),
            Figure("window_p99_ms", "99 of 100 are written within, ms", sides["p99"].median, at_most=True),
            Figure("window_twice", "events run twice after kill -9 at full speed", again.median, at_most=True),
        ),
        notes=(f"{backlog.event_name(0)}: {events:,} events stood in Redis before the worker started",),
        details={"events": events},
    )


def undisturbed(bed: Testbed, keys: Keys, events: int) -> list[float]:
    """Milliseconds from the end of each run to its delivery row."""
    environment = begin(bed, keys)
    with bed.worker(DATABASE, APP, **environment) as program:
        wait_until(lambda: program.running() and worker.acknowledged(bed, HANDLER), "all events are run", timeout=300)
    with bed.connect(DATABASE) as connection:
        rows = connection.execute(
            "SELECT event_id, (extract(epoch FROM updated_at) * 1000000)::bigint FROM outbox.delivery"
        ).fetchall()
    written: dict[UUID, int] = dict(rows)
    found = [written[event_id] / 1e3 - ended / 1e6 for event_id, ended in ends(bed)]
    if len(found) != events:
        raise MeasurementError(f"of {events} events {len(found)} ended")
    return found


def killed(bed: Testbed, keys: Keys, events: int) -> int:
    """How many events are run twice when the worker is killed half-way and another one takes over."""
    environment = begin(bed, keys)
    with bed.worker(DATABASE, APP, **environment) as program:
        wait_until(lambda: program.running() and sum(1 for _ in ends(bed)) >= events // 2, "half is run", timeout=300)
        assert program.process is not None
        program.process.kill()
        program.process.wait()
    with bed.worker(DATABASE, APP, **environment) as program:
        wait_until(lambda: program.running() and worker.acknowledged(bed, HANDLER), "the rest is run", timeout=300)
        # What the first one held is driven from PostgreSQL since it was acknowledged.
        wait_until(lambda: program.running() and done(bed) == events, "what it held is run", timeout=60)
    ran = [event_id for event_id, _ in ends(bed)]
    if len(set(ran)) != events:
        raise MeasurementError(f"of {events} events {len(set(ran))} were run")
    return len(ran) - events


def begin(bed: Testbed, keys: Keys) -> dict[str, str]:
    """Make everything as it was before the first run; the worker's environment."""
    bed.create(DATABASE, template=worker.template(HANDLER))
    bed.restore_keys(keys)
    found = bed.folder / "window.bin"
    found.write_bytes(b"")
    return {WINDOW_FILE: str(found)}


def ends(bed: Testbed) -> Iterator[tuple[UUID, int]]:
    """Which event's run ended when, in nanoseconds since 1970."""
    found = (bed.folder / "window.bin").read_bytes()
    for event_id, ended in RECORD.iter_unpack(found[: len(found) // RECORD.size * RECORD.size]):
        yield UUID(bytes=event_id), ended


def done(bed: Testbed) -> int:
    """How many deliveries are done."""
    with bed.connect(DATABASE) as connection:
        row = connection.execute("SELECT count(*) FROM outbox.delivery WHERE state = 'done'").fetchone()
    return int(row[0]) if row else 0
