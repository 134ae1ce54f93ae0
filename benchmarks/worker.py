"""How fast one worker process takes events through a handler that does nothing, outcomes recorded in PostgreSQL."""

from __future__ import annotations

from functools import partial

from benchmarks import backlog, subscription
from benchmarks.report import Figure, Report, ratio
from benchmarks.rounds import MeasurementError, in_turns, say, wait_until
from benchmarks.testbed import Keys, Testbed, testbed
from outbox.names import stream_key

DATABASE = "bench"
STREAM = stream_key("outbox", backlog.event_name(0))
PLAIN = "plain"
TRANSACTIONAL = "transactional"
BATCH = "batch"


def run(*, repeat: int, quick: bool) -> Report:
    """Measure each kind of handler `repeat` times in turns."""
    many = 20_000 if quick else 90_000
    counts = {PLAIN: many, TRANSACTIONAL: 2_000 if quick else 10_000, BATCH: many}
    with testbed() as bed:
        say("worker: " + ", ".join(f"{count:,} events {handler}" for handler, count in counts.items()))
        keys = {handler: prepare(bed, handler, count) for handler, count in counts.items()}
        sides = in_turns(
            "events/s",
            {handler: partial(rate, bed, handler, keys[handler], count) for handler, count in counts.items()},
            repeat,
        )
    return Report(
        name="worker",
        title="Worker: one process, a handler that does nothing, its outcome recorded in PostgreSQL",
        sides=tuple(sides.values()),
        figures=(
            Figure("plain_per_s", "async handler, events per second", sides[PLAIN].median, 20_000),
            Figure(
                "transactional_per_s", "with an AsyncSession, events per second", sides[TRANSACTIONAL].median, 1_500
            ),
            Figure(
                "batch_per_s", "with an AsyncSession for 100 events, events per second", sides[BATCH].median, 10_000
            ),
            ratio("ratio_batch", "a batch of 100 against one at a time", sides[BATCH], sides[TRANSACTIONAL]),
        ),
        notes=("from the first delivery row to the last; the events stood in Redis before the worker started",),
        details={"events": counts},
    )


def template(handler: str) -> str:
    """The database in which a handler's events have been published."""
    return f"bench_{handler}"


def prepare(bed: Testbed, handler: str, events: int) -> Keys:
    """Have a real relay publish `events` events for `handler`; return the Redis keys."""
    database = template(handler)
    bed.create(database)
    bed.redis.flushall()
    subscription.attach(bed, database, {handler: backlog.event_name(0)})
    with bed.connect(database) as connection:
        backlog.write(connection, "outbox.event", events=events)
    with bed.relay(database) as relay:
        wait_until(lambda: relay.running() and bed.redis.xlen(STREAM) >= events, "the relay publishes", timeout=120)
    return bed.copy_keys()


def rate(bed: Testbed, handler: str, keys: Keys, events: int) -> float:
    """One run of a worker: events per second by the times that the delivery rows carry."""
    bed.create(DATABASE, template=template(handler))
    bed.restore_keys(keys)
    with bed.worker(DATABASE, f"benchmarks.handlers:{handler}_app") as worker:
        wait_until(
            lambda: worker.running() and acknowledged(bed, handler), f"the worker runs {events:,} events", timeout=300
        )
    with bed.connect(DATABASE) as connection:
        row = connection.execute(
            "SELECT count(*), count(*) FILTER (WHERE state = 'done' AND attempts = 1),"
            " extract(epoch FROM max(updated_at) - min(updated_at))::float8 FROM outbox.delivery WHERE handler = %s",
            [handler],
        ).fetchone()
    if row is None or row[:2] != (events, events):
        raise MeasurementError(f"of {events} events {row and row[0]} have an outcome, {row and row[1]} done at once")
    return float(events / row[2])


def acknowledged(bed: Testbed, handler: str) -> bool:
    """Whether the handler's group has read the whole stream and holds nothing of it."""
    last = bed.redis.xinfo_stream(STREAM)["last-generated-id"]
    return any(
        group["name"] == handler.encode() and group["pending"] == 0 and group["last-delivered-id"] == last
        for group in bed.redis.xinfo_groups(STREAM)
    )
