"""How much memory the relay takes when much waits, and Redis when a consumer stands still."""

from __future__ import annotations

from benchmarks import backlog, subscription
from benchmarks.relay import Consumers, Load, Published, entries_added
from benchmarks.report import Figure, Report, Side, number
from benchmarks.rounds import MeasurementError, say, wait_until
from benchmarks.testbed import Testbed, testbed
from outbox.names import catch_up_key
from relay import bounds

DATABASE = "bench"
HOUR = 720_000
"""Events of an hour at 200 a second."""
STANDING = "standing"


def run(*, quick: bool) -> Report:
    """Measure each load once; `quick`: a tenth of what waits, and less of an hour."""
    waiting = Load(200_000 if quick else 2_000_000)
    large = Load(200 if quick else 2000, payload=256 * 1024)
    hour = Load(HOUR // 3 if quick else HOUR)
    with testbed() as bed:
        peak = relay_peak(bed, waiting)
        at_once_peak = relay_peak(bed, waiting, at_once=waiting.events // 2)
        large_peak = relay_peak(bed, large)
        looks = standing_still(bed, hour)
    first_half = max(redis for published, redis in looks if published <= hour.events // 2)
    second_half = max(redis for published, redis in looks if published > hour.events // 2)
    largest = (bounds.MAIN.size + bounds.CATCH_UP.size) / 2**20
    return Report(
        name="memory",
        title="Memory: the relay's at its peak, and Redis' while a consumer stands still",
        sides=(
            Side(f"relay, {waiting.events:,} events wait", "MiB", (peak,)),
            Side("relay, half of these in one transaction", "MiB", (at_once_peak,)),
            Side(f"relay, {large.events:,} events of 256 KiB wait", "MiB", (large_peak,)),
            Side(f"Redis, peak in each half of {hour.events:,} events", "MiB", (first_half, second_half)),
        ),
        figures=(
            Figure("waiting_peak_mib", "relay, much waits, MiB", peak, 150, at_most=True),
            Figure("at_once_peak_mib", "relay, half of it in one transaction, MiB", at_once_peak, 150, at_most=True),
            Figure("large_peak_mib", "relay, large events wait, MiB", large_peak, 150, at_most=True),
            Figure(
                "standing_peak_mib",
                "Redis, a consumer stands still, MiB",
                max(first_half, second_half),
                largest,
                at_most=True,
            ),
            Figure(
                "standing_growth_mib",
                "Redis, second half's peak minus the first's, MiB",
                second_half - first_half,
                1,
                at_most=True,
            ),
        ),
        notes=("Redis was looked at a hundred times a second, while one of two consumers stood still",),
        details={"waiting": waiting.events, "standing": hour.events},
    )


def relay_peak(bed: Testbed, load: Load, *, at_once: int = 0) -> float:
    """A relay's memory in MiB, when it has published a backlog of which `at_once` events are of one transaction."""
    say(f"memory: {load.events:,} events of {load.payload:,} bytes wait, {at_once:,} of them of one transaction")
    prepare(bed, load, load.handlers(), at_once=at_once)
    with bed.relay(DATABASE) as relay:
        Published.watch(bed, relay, load, receive=Consumers(bed, load))
        peak = relay.peak_memory()
    if peak is None:
        raise MeasurementError("this system does not tell how much memory a process has taken")
    say(f"  the relay's peak: {number(peak)} MiB")
    return peak


def standing_still(bed: Testbed, load: Load) -> list[tuple[int, float]]:
    """While one handler takes nothing and its sibling keeps up: events published so far, and Redis' memory in MiB."""
    say(f"memory: one of two consumers stands still for {load.events:,} events")
    prepare(bed, load, load.handlers() | {STANDING: backlog.event_name(0)})
    own = catch_up_key("outbox", backlog.event_name(0), STANDING)
    receive = Consumers(bed, load)
    looks: list[tuple[int, float]] = []

    def look() -> None:
        receive()
        looks.append((entries_added(bed, load.streams()), bed.redis.info("memory")["used_memory"] / 2**20))

    def own_stream_full() -> bool:
        look()
        return bool(bed.redis.xlen(own) >= bounds.CATCH_UP.entries)

    with bed.relay(DATABASE) as relay:
        Published.watch(bed, relay, load, receive=look)
        wait_until(own_stream_full, "the relay fills the stream of the consumer that stands still", timeout=30)
    say(f"  Redis' peak: {number(max(redis for _, redis in looks))} MiB")
    return looks


def prepare(bed: Testbed, load: Load, handlers: dict[str, str], *, at_once: int = 0) -> None:
    """A database in which the events wait for these handlers."""
    bed.redis.flushall()
    bed.create(DATABASE)
    subscription.attach(bed, DATABASE, handlers)
    with bed.connect(DATABASE) as connection:
        if at_once:
            with connection.transaction():
                backlog.write(connection, "outbox.event", events=at_once, payload=load.payload)
        backlog.write(connection, "outbox.event", events=load.events - at_once, payload=load.payload)
