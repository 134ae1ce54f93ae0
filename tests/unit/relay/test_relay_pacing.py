"""`relay.pacing`: when to poll and when to listen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay import pacing
from relay.pacing import Pace


def run(pace: Pace, polls: list[tuple[float, int]]) -> list[Pace]:
    """The paces after polls, each (seconds since the one before, events)."""
    now, paces = pace.at, []
    for waited, events in polls:
        now += waited
        pace = pacing.observe(pace, now, events)
        paces.append(pace)
    return paces


def steady(rate: float, seconds: float, every: float = 0.01) -> list[tuple[float, int]]:
    """Polls of an even load."""
    return [(every, int(rate * every * (i + 1)) - int(rate * every * i)) for i in range(round(seconds / every))]


LISTENING = Pace(listening=True, rate=0.0, at=0.0)


def test_a_relay_begins_by_polling() -> None:
    assert not Pace().listening
    assert not pacing.observe(Pace(), 0.0, 0).listening


def test_it_listens_within_two_seconds_of_calm() -> None:
    paces = run(Pace(), steady(0, 2))
    assert paces[-1].listening


def test_it_polls_within_a_second_of_load() -> None:
    assert not run(LISTENING, steady(1000, 1))[-1].listening


def test_a_burst_is_enough_to_poll() -> None:
    assert not pacing.observe(LISTENING, 1.0, int(pacing.BUSY_ABOVE)).listening


@given(st.floats(0, pacing.CALM_BELOW - 10))
def test_it_listens_in_the_end_at_any_low_load(rate: float) -> None:
    assert run(Pace(), steady(rate, 8))[-1].listening


@given(st.floats(pacing.BUSY_ABOVE + 20, 200_000))
def test_it_polls_in_the_end_at_any_high_load(rate: float) -> None:
    assert not run(LISTENING, steady(rate, 8))[-1].listening


@given(st.floats(pacing.CALM_BELOW + 20, pacing.BUSY_ABOVE - 20), st.booleans())
def test_between_the_thresholds_it_stays_as_it_is(rate: float, listening: bool) -> None:
    before = Pace(listening=listening, rate=rate, at=0.0)
    assert all(pace.listening == listening for pace in run(before, steady(rate, 4)))


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 100)), min_size=1, max_size=50))
def test_low_load_never_makes_it_flip(seconds: list[tuple[float, int]]) -> None:
    """At most 100 events in any second of the clock, however they fall in it: it listens, and goes on listening."""
    pace = LISTENING
    for second, (moment, events) in enumerate(seconds):
        pace = pacing.observe(pace, second + moment, events)
        assert pace.listening


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 5000)), max_size=60), st.booleans())
def test_it_changes_only_beyond_a_threshold(polls: list[tuple[float, int]], listening: bool) -> None:
    before = Pace(listening=listening, rate=0.0)
    for after in run(before, polls):
        if after.listening != before.listening:
            assert after.rate < pacing.CALM_BELOW if after.listening else after.rate >= pacing.BUSY_ABOVE
        before = after


@given(st.floats(0, 1e6), st.floats(-1e6, 1e6), st.integers(0, 10**6))
def test_the_rate_is_never_negative_even_if_time_goes_back(at: float, now: float, events: int) -> None:
    assert pacing.observe(Pace(at=at), now, events).rate >= events


def test_the_flag_outlives_the_pause_between_its_renewals() -> None:
    assert pacing.ASLEEP_FOR > 2 * pacing.SAFETY_POLL


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_polls_for_open_transactions_grow_with_their_age_within_bounds(one: float, other: float) -> None:
    early, late = sorted([one, other])
    assert pacing.POLL_EVERY <= pacing.awaited_poll(early) <= pacing.awaited_poll(late) <= 0.5
