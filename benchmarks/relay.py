"""How fast one relay publishes events that wait: against Redis alone, and against a relay that locks rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from uuid import UUID

import psycopg

from benchmarks import backlog, redis_benchmark, subscription
from benchmarks.program import Program
from benchmarks.report import Figure, Report, Side, number, ratio
from benchmarks.rounds import MeasurementError, in_turns, say
from benchmarks.testbed import Keys, Testbed, testbed
from outbox.entry import encode
from outbox.event import Event
from outbox.names import stream_key

WAITING = "bench_waiting"
LOCKING = "bench_locking"
DATABASE = "bench"
TRIAL_EVENTS = 50_000
BATCHES = (100, 300, 1000, 3000)
"""Rows that the tuned row-locking relay may take at once; a trial finds the best."""
USUAL_BATCH = 100
"""Rows that such relays take at once unless told otherwise (MassTransit's `MessageDeliveryLimit`, for one)."""

RELAY = "relay"
HELD = "relay, a transaction held open"
REDIS = "redis-benchmark -P 100"
ROW_LOCKING = "row-locking relay"
TUNED = "row-locking relay, tuned"


@dataclass(frozen=True)
class Load:
    """What waits: how many events, in how many streams, with payloads of how many bytes."""

    events: int = 400_000
    names: int = 1
    payload: int = 100

    def streams(self) -> list[str]:
        """The keys of the streams."""
        return [stream_key("outbox", backlog.event_name(n)) for n in range(self.names)]

    def handlers(self) -> dict[str, str]:
        """A handler for each event name."""
        return {f"handler{n}": backlog.event_name(n) for n in range(self.names)}


def run(*, repeat: int, load: Load, hold_transaction: bool = False) -> Report:
    """Measure all sides `repeat` times in turns. `hold_transaction` adds the relay with a transaction open throughout.

    Raises `ConfigurationError` when redis-benchmark is not installed.
    """
    redis_benchmark.program()
    memory: list[float] = []
    from_tick: list[float] = []
    with testbed() as bed:
        say(f"relay: {load.events:,} events of {load.payload} bytes wait in {load.names} stream(s)")
        keys = prepare(bed, load)
        batch = best_batch(bed, load)
        entry = sample(bed)
        command = partial(
            redis_benchmark.entries_per_second, bed.redis_server.port, load.streams()[0], entry, count=load.events
        )
        publish = partial(relay_rate, bed, load, keys, memory, from_tick)

        def redis_alone() -> float:
            bed.redis.flushall()
            return command()

        variants: dict[str, Callable[[], float]] = {REDIS: redis_alone, RELAY: publish}
        if hold_transaction:
            variants[HELD] = partial(publish, hold=True)
        variants[ROW_LOCKING] = partial(row_locking_rate, bed, load, USUAL_BATCH)
        variants[TUNED] = partial(row_locking_rate, bed, load, batch)
        redis_alone()
        sides = in_turns("events/s", variants, repeat)
    figures = [
        Figure("events_per_s", "events per second", sides[RELAY].median),
        ratio("ratio_redis", "relay / redis-benchmark", sides[RELAY], sides[REDIS], 0.5),
        ratio("ratio_row_locking", "relay / row-locking relay", sides[RELAY], sides[ROW_LOCKING], 5),
        ratio("ratio_row_locking_tuned", "relay / row-locking relay, tuned", sides[RELAY], sides[TUNED]),
    ]
    if hold_transaction:
        figures.append(ratio("ratio_held", "transaction held open / not", sides[HELD], sides[RELAY], 0.9))
    if memory:
        figures.append(Figure("relay_peak_mib", "relay's memory at its peak, MiB", max(memory), 150, at_most=True))
    whole = Side("from its tick to the last", "events/s", tuple(from_tick))
    return Report(
        name="relay",
        title=f"Relay: {load.events:,} waiting events of {load.payload} bytes in {load.names} stream(s), one process",
        sides=tuple(sides.values()),
        figures=tuple(figures),
        notes=(
            f"row-locking relay in batches of {USUAL_BATCH}; tuned, of {batch}, best of {', '.join(map(str, BATCHES))}",
            f"relay from its tick, before the first event is read, to the last: {number(whole.median)} events/s",
        ),
        details={
            "events": load.events, "names": load.names, "payload": load.payload, "row_locking_batch": batch,
            "events_per_s_from_tick": round(whole.median, 1),
        },
    )  # fmt: skip


def prepare(bed: Testbed, load: Load) -> Keys:
    """Make the databases in which the events wait, and return the Redis keys that belong to the relay's."""
    bed.create(WAITING)
    bed.redis.flushall()
    subscription.attach(bed, WAITING, load.handlers())
    with bed.connect(WAITING) as connection:
        backlog.write(connection, "outbox.event", events=load.events, names=load.names, payload=load.payload)
    keys = bed.copy_keys()
    bed.create(LOCKING, migrated=False)
    make_row_locking(bed, LOCKING, load, load.events)
    return keys


def make_row_locking(bed: Testbed, database: str, load: Load, events: int) -> None:
    """The row-locking relay's table, with `events` rows."""
    with bed.connect(database) as connection:
        connection.execute((files(__package__) / "row_locking.sql").read_bytes())
        backlog.write(connection, "row_locking.event", events=events, names=load.names, payload=load.payload)


def best_batch(bed: Testbed, load: Load) -> int:
    """The batch with which the row-locking relay is fastest here."""
    trial = Load(min(TRIAL_EVENTS, load.events), load.names, load.payload)
    bed.create("bench_trial", migrated=False)
    make_row_locking(bed, "bench_trial", trial, trial.events)
    rates = {batch: row_locking_rate(bed, trial, batch, template="bench_trial") for batch in BATCHES}
    bed.drop("bench_trial")
    say("  row-locking relay by batch: " + ", ".join(f"{batch}: {number(rate)}/s" for batch, rate in rates.items()))
    return max(rates, key=lambda batch: rates[batch])


def sample(bed: Testbed) -> dict[bytes, bytes]:
    """The stream entry of one of the events."""
    with bed.connect(WAITING) as connection:
        query = "SELECT id, name, payload::text, key, created_at FROM outbox.event ORDER BY seq DESC LIMIT 1"
        row = connection.execute(query).fetchone()
    if row is None or not isinstance(row[0], UUID):
        raise MeasurementError("no event waits")
    return encode(Event(id=row[0], name=row[1], payload_json=row[2], key=row[3], created_at=row[4]))


def relay_rate(
    bed: Testbed, load: Load, keys: Keys, memory: list[float], from_tick: list[float], *, hold: bool = False
) -> float:
    """One run of the relay. Appends its peak memory, and its rate with the time from the tick to the first event."""
    bed.create(DATABASE, template=WAITING)
    bed.restore_keys(keys)
    holder = bed.connect(DATABASE) if hold else None
    try:
        if holder:
            hold_open(holder)
        with bed.relay(DATABASE) as relay:
            published = Published.watch(bed, relay, load, receive=Consumers(bed, load))
            if (peak := relay.peak_memory()) is not None and not hold:
                memory.append(peak)
    finally:
        if holder:
            holder.close()
    if not hold:
        with bed.connect(DATABASE) as connection:
            query = "SELECT extract(epoch FROM min(created_at))::float8 FROM outbox.tick WHERE count > 0"
            row = connection.execute(query).fetchone()
        if row and row[0]:
            from_tick.append(load.events / (published.last_at - row[0]))
    return published.rate


def hold_open(connection: psycopg.Connection) -> None:
    """Begin a transaction that has written and keeps its snapshot."""
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    connection.execute("SELECT pg_current_xact_id()")


def row_locking_rate(bed: Testbed, load: Load, batch: int, *, template: str = LOCKING) -> float:
    """One run of the row-locking relay."""
    bed.create(DATABASE, template=template)
    bed.redis.flushall()
    with bed.module("row_locking", str(batch), database=DATABASE) as program:
        return Published.watch(bed, program, load).rate


@dataclass(frozen=True)
class Published:
    """What was seen of a relay's work: how many events stood in Redis at first and at last; when, in epoch seconds."""

    first: int
    first_at: float
    last: int
    last_at: float

    @property
    def rate(self) -> float:
        """Events per second between the two."""
        return (self.last - self.first) / (self.last_at - self.first_at)

    @classmethod
    def watch(
        cls, bed: Testbed, program: Program, load: Load, *, receive: Callable[[], None] | None = None
    ) -> Published:
        """Look up to a hundred times a second until all stood in Redis. Raises `MeasurementError` if the program fails.

        `receive()` plays the consumers at each look.
        """
        streams = load.streams()
        before = entries_added(bed, streams)
        deadline = time.monotonic() + 60 + load.events / 1000
        first = first_at = None
        while time.monotonic() < deadline:
            looked = time.monotonic()
            count = entries_added(bed, streams) - before
            now = time.time()
            if receive:
                receive()
            if count and first is None:
                first, first_at = count, now
            if count >= load.events and first is not None and first_at is not None:
                return cls(first, first_at, count, now)
            if not program.running() and entries_added(bed, streams) - before < load.events:
                break
            # Looking at many streams must not become the load.
            time.sleep(max(0.01, 10 * (time.monotonic() - looked)))
        raise program.failure(f"published {count:,} of {load.events:,} events")


class Consumers:
    """Consumers that keep up: when called, their groups are given everything; they finish nothing.

    Without them the relay would take the handlers off the full streams and feed them as room is made. The first entry
    stays pending, so that the relay's sweep does not look for outcomes; the others are passed over unread, because what
    reading costs is no part of this.
    """

    def __init__(self, bed: Testbed, load: Load) -> None:
        self._bed = bed
        self._waiting = {stream_key("outbox", name): handler for handler, name in load.handlers().items()}
        self._reading: dict[str, str] = {}

    def __call__(self) -> None:
        pipeline = self._bed.redis.pipeline(transaction=False)
        for stream, handler in self._waiting.items():
            pipeline.xreadgroup(handler, "bench", {stream: ">"}, count=1)
        found = pipeline.execute(raise_on_error=False)
        for (stream, handler), reply in zip(list(self._waiting.items()), found, strict=True):
            if isinstance(reply, list) and reply:
                self._reading[stream] = handler
                del self._waiting[stream]
        for stream, handler in self._reading.items():
            pipeline.xgroup_setid(stream, handler, "$")
        pipeline.execute(raise_on_error=False)


def entries_added(bed: Testbed, streams: Sequence[str]) -> int:
    """How many entries the streams ever had."""
    pipeline = bed.redis.pipeline(transaction=False)
    for stream in streams:
        pipeline.xinfo_stream(stream)
    replies = pipeline.execute(raise_on_error=False)
    return sum(reply["entries-added"] for reply in replies if isinstance(reply, dict))
