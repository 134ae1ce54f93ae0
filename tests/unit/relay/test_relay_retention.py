"""What is kept, decided without a server."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.position import Position
from relay import retention
from relay.retention import AHEAD, STEP, Mark, Partition, Subscriber

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
TODAY = NOW.date()
WEEK = timedelta(days=7)


def partition(day: date, table: str = "event", days: int = 1) -> Partition:
    lower = retention.bounds(day)[0]
    return Partition(table, f"{table}_p{day:%Y%m%d}", lower, lower + timedelta(days=days))


def days(first: int, last: int) -> list[date]:
    return [TODAY + timedelta(days=n) for n in range(first, last + 1)]


def test_today_and_the_days_ahead_are_made_if_they_are_not_there() -> None:
    default = Partition("event", "event_default", None, None, default=True)
    assert retention.to_make([default], "event", TODAY) == days(0, AHEAD)
    there = [default, *map(partition, days(0, AHEAD - 1))]
    assert retention.to_make(there, "event", TODAY) == days(AHEAD, AHEAD)
    assert retention.to_make(there, "delivery", TODAY) == days(0, AHEAD)


def test_days_of_which_the_default_partition_holds_rows_are_made_but_none_that_is_further_ahead() -> None:
    there = [partition(day) for day in days(0, AHEAD)]
    waiting = [*days(-3, -2), *days(AHEAD + 1, AHEAD + 1)]
    assert retention.to_make(there, "event", TODAY, waiting) == days(-3, -2)


def test_nothing_is_made_over_a_range_that_somebody_made_by_hand() -> None:
    month = partition(TODAY - timedelta(days=20), days=25)
    assert retention.to_make([month], "event", TODAY) == days(5, AHEAD)
    open_ended = Partition("event", "event_rest", NOW + timedelta(days=1), None)
    assert retention.to_make([open_ended], "event", TODAY) == days(0, 0)


def test_what_ends_before_the_horizon_is_expired_the_oldest_first() -> None:
    before = retention.horizon(NOW, WEEK)
    assert before == datetime(2026, 1, 24, tzinfo=UTC)
    there = [partition(day) for day in reversed(days(-9, 0))]
    first = Partition("event", "event_old", None, retention.bounds(TODAY - timedelta(days=9))[0])
    assert [each.name for each in retention.expired([*there, first], "event", before)] == [
        "event_old", "event_p20260122", "event_p20260123",
    ]  # fmt: skip
    assert retention.expired(there, "delivery", before) == []


def test_a_handler_that_nobody_announced_for_longer_than_the_retention_is_not_served() -> None:
    served = Subscriber("a", NOW - timedelta(days=6), Position(1, 1))
    removed = Subscriber("b", NOW - timedelta(days=8), Position(1, 1))
    assert retention.unserved([served, removed], NOW, WEEK) == [removed]


def test_while_nobody_is_served_at_all_nobody_is_given_up() -> None:
    assert retention.unserved([Subscriber("a", NOW - timedelta(days=30))], NOW, WEEK) == []
    assert retention.unserved([], NOW, WEEK) == []


ticks = st.lists(st.integers(0, 3 * STEP), max_size=200).map(
    lambda steps: [Mark(n, 100 + sum(steps[: n + 1])) for n in range(len(steps))]
)


@given(ticks, st.none() | st.integers(0, 100 * STEP))
def test_thinned_ticks_keep_both_ends_and_merge_no_more_than_a_step(marks: list[Mark], oldest: int | None) -> None:
    gone = set(retention.superfluous(marks, oldest))
    kept = [mark for mark in marks if mark.id not in gone]
    assert kept[:1] == marks[:1]
    assert kept[-1:] == marks[-1:]
    for earlier, later in pairwise(kept):
        merged = later.id - earlier.id > 1
        known = [max(mark.xmax, oldest or 0) for mark in (earlier, later)]
        assert not merged or oldest is None or known[1] - known[0] <= STEP
    assert retention.superfluous(kept, oldest) == []


@pytest.mark.parametrize("ticks", [1_000, 100_000])
def test_how_many_ticks_stay_depends_on_what_is_retained_and_not_on_how_many_there_were(ticks: int) -> None:
    marks = [Mark(n, n * 10_000_000 // ticks) for n in range(ticks)]
    assert len(marks) - len(retention.superfluous(marks, oldest_event=9_000_000)) <= 2 * 1_000_000 // STEP + 3
    assert len(marks) - len(retention.superfluous(marks, oldest_event=None)) <= 3
