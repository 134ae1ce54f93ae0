from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outbox.payload import MAX_BYTES
from workers.prefetch import FIRST, LARGEST, MEMORY, READ, affordable, next_step, next_window, shares

SIZES = st.integers(0, MEMORY)


def window(now: int, seconds: float) -> int:
    return next_window(now, capacity=10, seconds=seconds)


def test_fast_work_doubles_the_window_and_slow_work_halves_it() -> None:
    assert window(100, 0.01) == 200
    assert window(100, 0.3) == 100
    assert window(100, 2.0) == 50


def test_it_never_falls_below_what_runs_at_once() -> None:
    assert window(10, 5.0) == 10


@given(st.integers(1, LARGEST), st.floats(0, 100))
def test_it_is_bounded(now: int, seconds: float) -> None:
    assert 1 <= window(now, seconds) <= LARGEST


def test_what_is_asked_of_a_stream_grows_only_with_what_it_gives() -> None:
    assert [next_step(found) for found in (0, 1, 8, 32, 128, 500)] == [FIRST, FIRST, 32, 128, READ, READ]


@given(SIZES, SIZES)
def test_a_handler_fetches_only_while_more_is_free_than_it_holds_and_no_more_than_that(held: int, others: int) -> None:
    free = MEMORY - held - others
    fetched = affordable(held, held + others) * MAX_BYTES
    assert fetched <= max(0, free)
    assert not fetched or held < free


@given(st.lists(st.tuples(st.integers(0, LARGEST), SIZES), max_size=40), SIZES)
def test_all_handlers_together_stay_below_the_bound_but_for_one_event_of_who_holds_none(
    asks: list[tuple[int, int]], others: int
) -> None:
    total = others + sum(held for _, held in asks)
    found = shares([(wanted, held, not held) for wanted, held in asks], total)
    assert all(count <= wanted for count, (wanted, _) in zip(found, asks, strict=True))
    assert all(count or held or not wanted for count, (wanted, held) in zip(found, asks, strict=True))
    beyond = sum(count for count in found if count > 1) * MAX_BYTES
    assert not beyond or total + beyond <= MEMORY


def test_many_small_events_are_read_in_large_steps_and_idle_streams_cost_the_others_little() -> None:
    small = LARGEST * 300
    assert affordable(small, small) >= READ
    assert shares([(FIRST, 0, True)] * 60, 0) == [FIRST] * 60
