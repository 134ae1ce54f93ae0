from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.prefetch import LARGEST, MEMORY, next_average, next_window, within_memory


def window(now: int, seconds: float, size: float = 100) -> int:
    return next_window(now, capacity=10, seconds=seconds, average_bytes=size)


def test_fast_work_doubles_the_window_and_slow_work_halves_it() -> None:
    assert window(100, 0.01) == 200
    assert window(100, 0.3) == 100
    assert window(100, 2.0) == 50


def test_it_never_falls_below_what_runs_at_once() -> None:
    assert window(10, 5.0) == 10


@given(st.integers(1, LARGEST), st.floats(0, 100), st.floats(0, 256 * 1024))
def test_it_is_bounded_in_number_and_memory(now: int, seconds: float, size: float) -> None:
    found = window(now, seconds, size)
    assert 1 <= found <= LARGEST
    assert found <= 10 or found * size <= MEMORY


def test_large_payloads_after_small_ones_make_room_smaller_at_once_and_small_ones_larger_slowly() -> None:
    average = next_average(100, 256 * 1024)
    assert within_memory(LARGEST, capacity=10, average_bytes=average) == 64
    average = next_average(average, 100)
    assert within_memory(LARGEST, capacity=10, average_bytes=average) == 79


def test_what_runs_at_once_is_let_in_however_large() -> None:
    assert within_memory(LARGEST, capacity=100, average_bytes=256 * 1024) == 100
