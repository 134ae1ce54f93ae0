"""`relay.window`: how many ticks one read covers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outbox.position import END, ORIGIN, Position
from relay.snapshot import NOTHING, Snapshot
from relay.tick import Tick
from relay.window import FEWEST, LONG, MOST, TRANSACTIONS, next_most, window

GAPS = st.lists(st.sampled_from([1, 10, TRANSACTIONS // 3, TRANSACTIONS, 10 * TRANSACTIONS]), min_size=1, max_size=9)


def ticks(gaps: list[int]) -> list[Tick]:
    """Ticks 10, 20, … with as many transactions each."""
    made, since = [], NOTHING
    for number, gap in enumerate(gaps, start=1):
        snapshot = Snapshot(since.xmax + gap, since.xmax + gap)
        made.append(Tick(number * 10, snapshot, since))
        since = snapshot
    return made


@given(GAPS)
def test_reading_window_by_window_comes_to_the_end_and_covers_all(gaps: list[int]) -> None:
    log, at, covered = ticks(gaps), ORIGIN, []
    while part := window([tick for tick in log if tick.id >= at.tick], at):
        covered += part
        assert Position(part[-1].id, END) > at
        at = Position(part[-1].id, END)
    assert covered == log


@given(GAPS)
def test_it_is_bounded_unless_a_single_tick_is_larger(gaps: list[int]) -> None:
    part = window(ticks(gaps), ORIGIN)
    assert len(part) == 1 or part[-1].snapshot.xmax - part[0].since.xmax <= TRANSACTIONS
    assert part == ticks(gaps)[: len(part)]


def test_a_tick_that_is_read_in_part_is_read_on() -> None:
    log = ticks([1, 1, 1])
    assert window(log, Position(10, 7)) == log
    assert window(log, Position(10, END)) == log[1:]
    assert window(log, Position(30, END)) == []


@given(st.integers(FEWEST, MOST), st.floats(0, 100))
def test_a_read_that_kept_the_main_feed_waiting_is_followed_by_a_smaller_one(most: int, seconds: float) -> None:
    following = next_most(most, seconds)
    assert FEWEST <= following <= MOST
    assert following < most or seconds <= LONG or most == FEWEST
    assert following > most or seconds >= LONG / 2 or most == MOST
