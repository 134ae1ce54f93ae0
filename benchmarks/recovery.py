"""How long it takes until what Redis lost is done: nearly a full stream of entries that nobody had read."""

from __future__ import annotations

import time

from benchmarks import backlog, subscription
from benchmarks.report import Figure, Report, Side
from benchmarks.rounds import MeasurementError, say, wait_until
from benchmarks.testbed import Testbed, testbed
from benchmarks.worker import DATABASE, PLAIN, STREAM, prepare, template
from relay import bounds

EVENTS = bounds.MAIN.entries - 1_000
"""A full stream is trimmed, and what is cut off is fed from PostgreSQL anyway."""


def run(*, repeat: int, quick: bool) -> Report:
    """Lose all entries `repeat` times; `quick` loses a tenth."""
    events = EVENTS // 10 if quick else EVENTS
    again: list[float] = []
    whole: list[float] = []
    with testbed() as bed:
        say(f"recovery: Redis loses {events:,} entries that no worker had read")
        prepare(bed, PLAIN, events)
        for turn in range(1, repeat + 1):
            fed, done = once(bed, events)
            again.append(fed)
            whole.append(done)
            say(f"  {turn}/{repeat}  all done {done:.1f} s after the loss")
    sides = (
        Side("loss → first event done", "s", tuple(again)),
        Side("loss → all done, attached again", "s", tuple(whole)),
    )
    return Report(
        name="recovery",
        title=f"Recovery: Redis lost {events:,} entries; then a relay and a worker start",
        sides=sides,
        figures=(Figure("recovery_s", "until everything is done, seconds", sides[1].median, 15, at_most=True),),
        details={"events": events},
    )


def once(bed: Testbed, events: int) -> tuple[float, float]:
    """Lose everything, start relay and worker; returns the seconds until the first and until all events are done."""
    handlers = {PLAIN: backlog.event_name(0)}
    bed.create(DATABASE, template=template(PLAIN))
    bed.redis.flushall()
    with bed.connect(DATABASE) as connection:

        def done() -> int:
            row = connection.execute("SELECT count(*) FROM outbox.delivery WHERE state = 'done'").fetchone()
            return row[0] if row else 0

        lost = time.monotonic()
        with bed.relay(DATABASE) as relay, bed.worker(DATABASE, f"benchmarks.handlers:{PLAIN}_app") as worker:
            wait_until(lambda: relay.running() and worker.running() and done() > 0, "the first outcome", timeout=60)
            first = time.monotonic() - lost
            wait_until(
                lambda: (
                    relay.running()
                    and worker.running()
                    and done() >= events
                    and subscription.attached(bed, DATABASE, handlers)
                ),
                f"{events:,} outcomes",
                timeout=300,
            )
            whole = time.monotonic() - lost
        if bed.redis.xlen(STREAM) or done() != events:
            raise MeasurementError(f"of {events:,} events {done():,} have an outcome")
    return first, whole
