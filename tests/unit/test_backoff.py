from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.backoff import Backoff


def test_it_doubles() -> None:
    backoff = Backoff(initial=1, jitter=0)
    assert [backoff.delay(n, 0.5) for n in (1, 2, 3, 4)] == [1, 2, 4, 8]


def test_jitter_is_added_from_the_given_randomness() -> None:
    assert Backoff(initial=1, jitter=2).delay(1, 0.25) == 1.5


@given(st.integers(1, 100_000), st.floats(0, 1, exclude_max=True))
def test_it_is_capped_and_never_negative(attempt: int, random: float) -> None:
    assert 0 <= Backoff(maximum=60).delay(attempt, random) <= 60


def test_a_senseless_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        Backoff(initial=-1)
