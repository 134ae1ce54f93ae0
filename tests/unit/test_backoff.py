from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from workers.backoff import Backoff, BackoffLike, delays
from workers.errors import LONGEST_DELAY, HandlerError


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


@pytest.mark.parametrize(
    ("given_as", "expected"),
    [
        (Backoff(initial=1, jitter=0), [1, 2, 4, 8]),
        (5, [5, 5, 5, 5]),
        (0.25, [0.25, 0.25, 0.25, 0.25]),
        (0, [0, 0, 0, 0]),
        (timedelta(minutes=1), [60, 60, 60, 60]),
        ([1, 10, 60], [1, 10, 60, 60]),
        ((timedelta(seconds=2), 3.5), [2, 3.5, 3.5, 3.5]),
        (range(1, 3), [1, 2, 2, 2]),
        (tenacity.wait_fixed(7), [7, 7, 7, 7]),
        (tenacity.wait_exponential(multiplier=1, max=5), [1, 2, 4, 5]),
        (tenacity.wait_incrementing(start=1, increment=2), [1, 3, 5, 7]),
        (tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(9)), [1, 9, 9, 9]),
        (tenacity.wait_fixed(1) + tenacity.wait_incrementing(start=0, increment=1), [1, 2, 3, 4]),
        (tenacity.wait_none(), [0, 0, 0, 0]),
    ],
)
def test_delays_may_be_said_in_many_ways(given_as: BackoffLike, expected: list[float]) -> None:
    policy = delays(given_as)
    assert [policy.delay(attempt, 0.5) for attempt in (1, 2, 3, 4)] == expected


@pytest.mark.parametrize(
    "wait",
    [
        tenacity.wait_random(1, 3),
        tenacity.wait_random_exponential(max=3),
        tenacity.wait_exponential_jitter(max=3),
        tenacity.wait_exponential(min=1),
    ],
)
@pytest.mark.parametrize("attempt", [1, 5, 2000, 10**6])
def test_any_wait_strategy_gives_a_delay_that_can_be_stored(wait: Any, attempt: int) -> None:
    assert 0 <= delays(wait).delay(attempt, 0.5) <= LONGEST_DELAY


@pytest.mark.parametrize(
    "senseless",
    [-1, -0.5, float("nan"), float("inf"), 1e12, 10**400, True, "5", b"5", None, [], [1, -1], [1, "2"], [[1]],
     timedelta(-1), timedelta.max, object(), lambda attempt: 1, Backoff, {1: 2}],
)  # fmt: skip
def test_what_is_no_delay_is_refused_with_advice(senseless: Any) -> None:
    with pytest.raises(HandlerError, match="backoff"):
        delays(senseless)


class _Broken(tenacity.wait.wait_base):
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]


@pytest.mark.parametrize("answer", [-1, float("nan"), "soon", None])
def test_a_strategy_that_gives_no_number_of_seconds_is_refused(answer: Any) -> None:
    with pytest.raises(HandlerError, match="_Broken gives"):
        delays(_Broken(answer))


def test_a_strategy_that_knows_only_some_errors_is_taken_and_the_default_stands_in_where_it_fails() -> None:
    policy = delays(tenacity.wait_exception(lambda error: error.retry_after))  # type: ignore[attr-defined]
    asked = ValueError("slow down")
    asked.retry_after = 30  # type: ignore[attr-defined]
    assert policy.delay(1, 0.5, asked) == 30
    assert policy.delay(2, 0.5, ValueError("no")) == Backoff().delay(2, 0.5)


def test_a_longest_delay_beyond_what_postgresql_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="ten years"):
        Backoff(maximum=1e12)
