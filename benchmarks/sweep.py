"""What the sweep costs on top of the relay, when it is worst: the relay publishes a backlog as fast as it can."""

from __future__ import annotations

from statistics import median

from benchmarks import backlog, processor, subscription
from benchmarks.processor import Spent
from benchmarks.report import Figure, Report, Side
from benchmarks.rounds import say, wait_until
from benchmarks.testbed import Testbed, testbed
from outbox.names import stream_key
from relay import bounds

DATABASE = "bench"
HANDLER = "swept"
EVENTS = bounds.MAIN.entries - 10_000

OUTCOMES = """\
INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)
SELECT id, %s, created_at, 'done', 1 FROM outbox.event"""

PROVED = """\
SELECT (h.done_tick, h.done_seq) >= (r.tick, r.seq) AND (SELECT sum(count) FROM outbox.tick) >= %s
  FROM outbox.handler AS h, outbox.relay AS r WHERE h.name = %s"""


def run(*, repeat: int, quick: bool) -> Report:
    """Measure `repeat` times; `quick` changes nothing."""
    runs: list[Spent] = []
    with testbed() as bed:
        say(f"sweep: {EVENTS:,} events, each with its outcome, one handler")
        for turn in range(1, repeat + 1):
            runs.append(once(bed))
            say(f"  {turn}/{repeat}  sweep {runs[-1].sweep:.2f} s, the rest {runs[-1].rest:.2f} s")
    sweep, rest = (
        Side(name, "µs/event", tuple(seconds / EVENTS * 1e6 for seconds in found))
        for name, found in {"sweep": [r.sweep for r in runs], "rest of the relay": [r.rest for r in runs]}.items()
    )
    return Report(
        name="sweep",
        title="Sweep: processor time in relay, PostgreSQL and Redis for each event of one handler",
        sides=(sweep, rest),
        figures=(
            Figure("sweep_us", "sweep, microseconds per event and handler", sweep.median),
            Figure(
                "ratio_sweep", "sweep / rest, median of the runs", median(r.share for r in runs), 0.05, at_most=True
            ),
        ),
        details={"events": EVENTS},
    )


def once(bed: Testbed) -> Spent:
    """One run: a running relay meets all events at once, they are taken as finished, and proved to be."""
    stream = stream_key("outbox", backlog.event_name(0))
    handler = {HANDLER: backlog.event_name(0)}
    bed.redis.flushall()
    bed.create(DATABASE)
    subscription.register(bed, DATABASE, handler)
    with bed.connect(DATABASE) as writer, bed.connect(DATABASE) as reader, bed.relay(DATABASE) as relay:

        def proved() -> bool:
            # Consumers that have finished whatever there is.
            bed.redis.xgroup_setid(stream, HANDLER, "$")
            return relay.running() and reader.execute(PROVED, [EVENTS, HANDLER]).fetchone() == (True,)

        wait_until(lambda: relay.running() and subscription.attached(bed, DATABASE, handler), "attached", timeout=30)
        with writer.transaction():
            backlog.write(writer, "outbox.event", events=EVENTS)
            writer.execute(OUTCOMES, [HANDLER])
            writer.execute("ANALYZE outbox.delivery")
            before = processor.spent(bed, DATABASE, relay.pid)
        wait_until(proved, "the sweep proves that all is done", timeout=60)
        return processor.spent(bed, DATABASE, relay.pid) - before
