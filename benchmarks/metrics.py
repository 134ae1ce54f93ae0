"""What metrics cost a worker: processor time of its process for each event, with a port for them and without."""

from __future__ import annotations

from functools import partial

from benchmarks import worker
from benchmarks.processor import process_seconds
from benchmarks.report import Figure, Report
from benchmarks.rounds import in_turns, say, wait_until
from benchmarks.testbed import Keys, Testbed, testbed

OFF, ON = "off", "on"


def run(*, repeat: int, quick: bool) -> Report:
    """Measure each side `repeat` times in turns, with a plain handler that does nothing."""
    events = 20_000 if quick else 90_000
    with testbed() as bed:
        say(f"metrics: {events:,} events a run")
        keys = worker.prepare(bed, worker.PLAIN, events)
        ports = {OFF: "", ON: "0"}
        sides = in_turns(
            "µs/event", {name: partial(cost, bed, keys, events, port) for name, port in ports.items()}, repeat
        )
    return Report(
        name="metrics",
        title="Metrics: processor time of a worker process for each event, plain handler that does nothing",
        sides=tuple(sides.values()),
        figures=(
            Figure(
                "ratio_metrics",
                "with metrics against without",
                sides[ON].median / sides[OFF].median,
                1.05,
                at_most=True,
            ),
        ),
        notes=("from the first outcome in PostgreSQL to the last acknowledgement; user and system time",),
        details={"events": events},
    )


def cost(bed: Testbed, keys: Keys, events: int, port: str) -> float:
    """Microseconds for each event of one run, without the process's start."""
    bed.create(worker.DATABASE, template=worker.template(worker.PLAIN))
    bed.restore_keys(keys)
    app = f"benchmarks.handlers:{worker.PLAIN}_app"
    with (
        bed.worker(worker.DATABASE, app, OUTBOX_METRICS_PORT=port) as process,
        bed.connect(worker.DATABASE) as connection,
    ):

        def recorded() -> int:
            row = connection.execute("SELECT count(*) FROM outbox.delivery").fetchone()
            return int(row[0]) if row else 0

        wait_until(lambda: process.running() and recorded() > 0, "the first outcome", timeout=60, every=0.001)
        assert process.pid is not None
        before, already = process_seconds(process.pid), recorded()
        wait_until(lambda: process.running() and worker.acknowledged(bed, worker.PLAIN), "all events", timeout=300)
        return (process_seconds(process.pid) - before) / (events - already) * 1e6
