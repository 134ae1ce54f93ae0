"""What is kept and for how long: which partitions to make, which may go, which ticks are still needed. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise

from outbox.position import Position

AHEAD = 7
"""Days for which partitions are made ahead, besides today's."""

STEP = 10_000
"""Transactions between two ticks that are kept once all marks have passed them: what a new handler reads at a time."""

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of `table` and the range it holds, from `lower` to before `upper`; None is without a bound."""

    table: str
    name: str
    lower: datetime | None
    upper: datetime | None
    default: bool = False

    def overlaps(self, lower: datetime, upper: datetime) -> bool:
        """Whether it holds anything of this range. A default partition holds what no other does, and counts as none."""
        return (
            not self.default
            and (self.lower is None or self.lower < upper)
            and (self.upper is None or self.upper > lower)
        )


@dataclass(frozen=True, slots=True)
class Subscriber:
    """What retention asks of a handler; `done` is None while the relay has not admitted it."""

    name: str
    last_seen: datetime
    done: Position | None = None


def bounds(day: date) -> tuple[datetime, datetime]:
    """The range of a UTC day."""
    lower = datetime.combine(day, time(), UTC)
    return lower, lower + DAY


def to_make(partitions: Sequence[Partition], table: str, today: date, waiting: Iterable[date] = ()) -> list[date]:
    """The days that `table` lacks a partition for: from today on ahead, and before those of `waiting`, days of which
    the default partition holds rows. Nothing is made that would overlap what is there."""
    last = today + timedelta(days=AHEAD)
    wanted = {today + timedelta(days=n) for n in range(AHEAD + 1)} | {day for day in waiting if day <= last}
    mine = [each for each in partitions if each.table == table]
    return sorted(day for day in wanted if not any(each.overlaps(*bounds(day)) for each in mine))


def horizon(now: datetime, retention: timedelta) -> datetime:
    """What was added before this moment may go: the beginning of a UTC day."""
    return bounds((now - retention).astimezone(UTC).date())[0]


def expired(partitions: Sequence[Partition], table: str, before: datetime) -> list[Partition]:
    """The partitions of `table` that end by `before`, the oldest first."""
    found = [
        (each.upper, each)
        for each in partitions
        if each.table == table and not each.default and each.upper is not None and each.upper <= before
    ]
    return [each for _, each in sorted(found, key=lambda pair: pair[0])]


def unserved(subscribers: Sequence[Subscriber], now: datetime, retention: timedelta) -> list[Subscriber]:
    """The handlers that no worker has announced for longer than events are retained: removed or renamed, so they hold
    nothing back. When that is true of all of them it is an outage, and then none is given up."""
    gone = [each for each in subscribers if each.last_seen < now - retention]
    return gone if len(gone) < len(subscribers) else []


@dataclass(frozen=True, slots=True)
class Mark:
    """A tick as thinning sees it: its id, and the transaction before which its snapshot saw everything there was."""

    id: int
    xmax: int


def superfluous(ticks: Sequence[Mark], oldest_event: int | None) -> list[int]:
    """Of consecutive ticks that no position needs, the ids of those whose batch may be read as part of the next one's.

    The first and the last stay. Between those that stay lie at most `STEP` transactions, unless there was no tick in
    between; transactions before that of the oldest event that is retained do not count. `oldest_event` is that
    transaction, None without events.
    """
    gone: list[int] = []
    if len(ticks) < 3:
        return gone

    def place(tick: Mark) -> int:
        return ticks[-1].xmax if oldest_event is None else max(tick.xmax, oldest_event)

    kept = ticks[0]
    for each, following in pairwise(ticks[1:]):
        if place(following) - place(kept) <= STEP:
            gone.append(each.id)
        else:
            kept = each
    return gone
