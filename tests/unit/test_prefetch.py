from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.prefetch import LARGEST, MEMORY, next_window


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
