"""How fast a worker takes events through handlers that do nothing, outcomes recorded in PostgreSQL."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from benchmarks import backlog, subscription
from benchmarks.report import Figure, Report, ratio
from benchmarks.rounds import MeasurementError, in_turns, say, wait_until
from benchmarks.testbed import Keys, Testbed, testbed
from outbox.names import stream_key

DATABASE = "bench"
STREAM = stream_key("outbox", backlog.event_name(0))
PLAIN = "plain"


class Kind(NamedTuple):
    """A kind of handler, under what it is reported, and by how many events it is measured."""

    what: str
    key: str
    two: str
    events: int
    quick: int
    target: float | None = None


KINDS = {
    PLAIN: Kind("async handler", "plain_per_s", "ratio_two_plain", 90_000, 20_000, 20_000),
    "transactional": Kind(
        "with an AsyncSession", "transactional_per_s", "ratio_two_transactional", 10_000, 2_000, 1_500
    ),
    "batch": Kind("with an AsyncSession for 100 events", "batch_per_s", "ratio_two_batch", 90_000, 20_000, 10_000),
    "thread": Kind("def in a thread", "thread_per_s", "ratio_two_thread", 30_000, 5_000),
    "process": Kind("def in a child process", "process_per_s", "ratio_two_process", 15_000, 3_000),
}


def run(*, repeat: int, quick: bool) -> Report:
    """Measure each kind of handler in one worker process and in two, `repeat` times in turns."""
    counts = {handler: kind.quick if quick else kind.events for handler, kind in KINDS.items()}
    with testbed() as bed:
        say("worker: " + ", ".join(f"{count:,} events {handler}" for handler, count in counts.items()))
        keys = {handler: prepare(bed, handler, count) for handler, count in counts.items()}
        sides = in_turns(
            "events/s",
            {
                side(handler, processes): partial(rate, bed, handler, keys[handler], count, processes)
                for handler, count in counts.items()
                for processes in (1, 2)
            },
            repeat,
        )
    return Report(
        name="worker",
        title="Worker: a handler that does nothing, its outcome recorded in PostgreSQL",
        sides=tuple(sides.values()),
        figures=(
            *(
                Figure(kind.key, f"{kind.what}, events per second", sides[handler].median, kind.target)
                for handler, kind in KINDS.items()
            ),
            ratio("ratio_batch", "a batch of 100 against one at a time", sides["batch"], sides["transactional"]),
            *(
                ratio(kind.two, f"{kind.what}, two processes against one", sides[side(handler, 2)], sides[handler])
                for handler, kind in KINDS.items()
            ),
        ),
        notes=("from the first delivery row to the last; the events stood in Redis before the worker started",),
        details={"events": counts},
    )


def side(handler: str, processes: int) -> str:
    """What a side is called."""
    return handler if processes == 1 else f"{handler}, {processes} processes"


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


def rate(bed: Testbed, handler: str, keys: Keys, events: int, processes: int = 1) -> float:
    """One run of a worker: events per second by the times that the delivery rows carry."""
    app = f"benchmarks.handlers:{handler}_app"
    bed.create(DATABASE, template=template(handler))
    bed.restore_keys(keys)
    with bed.worker(DATABASE, app, "--processes", str(processes)) as worker:
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
