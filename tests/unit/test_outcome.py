from __future__ import annotations

import pickle
from datetime import timedelta
from typing import Any

import pytest

import workers
from workers.backoff import Backoff, delays
from workers.errors import Reject, RetryLater, Snooze
from workers.outcome import Dead, Outcome, Retry, Snoozed, judge, take
from workers.verdict import Verdicts


def judged(error: BaseException, attempt: int = 1) -> Outcome:
    return judge(error, attempt=attempt, max_attempts=3, backoff=Backoff(initial=4, jitter=0), random=0.0)


def test_a_failure_is_tried_again_after_the_backoff() -> None:
    assert judged(ValueError("no"), 2) == Retry(8.0, "ValueError: no")


def test_the_last_attempt_is_the_last() -> None:
    assert judged(ValueError("no"), 3) == Dead("ValueError: no")


def test_retry_later_chooses_the_delay_but_costs_an_attempt() -> None:
    assert isinstance(judged(RetryLater(timedelta(minutes=1))), Retry)
    assert judged(RetryLater(60)).delay == 60  # type: ignore[union-attr]
    assert isinstance(judged(RetryLater(60), 3), Dead)


def test_snooze_never_dies() -> None:
    assert judged(Snooze(5), 99) == Snoozed(5.0, "snoozed")


def test_reject_dies_at_once_with_its_reason() -> None:
    assert judged(Reject("no such user")) == Dead("rejected: no such user")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError()])
def test_whatever_a_handler_raises_is_a_failed_attempt(error: BaseException) -> None:
    assert isinstance(judged(error), Retry)


def test_retry_later_may_leave_the_delay_to_the_backoff() -> None:
    assert judged(RetryLater(None, "busy"), 2) == Retry(8.0, "RetryLater: busy")


def test_a_final_error_dies_at_the_first_attempt() -> None:
    outcome = judge(
        KeyError("x"), attempt=1, max_attempts=9, backoff=Backoff(), random=0, verdicts=Verdicts(dead_on=(LookupError,))
    )
    assert outcome == Dead("KeyError: 'x'")


def test_the_backoff_may_look_at_the_error() -> None:
    from tenacity import wait_exception

    waits = delays(wait_exception(lambda error: error.args[0]))
    assert judge(ValueError(7), attempt=1, max_attempts=2, backoff=waits, random=0.0) == Retry(7.0, "ValueError: 7")


def test_a_dead_delivery_keeps_where_its_error_was_raised() -> None:
    try:
        raise ValueError("no")
    except ValueError as error:
        outcome = judged(error, 3)
    assert isinstance(outcome, Dead)
    assert outcome.traceback is not None
    assert 'raise ValueError("no")' in outcome.traceback


@pytest.mark.parametrize("returned", [workers.Done(), True, False, 0, "no", object(), workers.Done, Backoff()])
def test_whatever_else_a_handler_returns_means_done(returned: object) -> None:
    take(returned)


def test_a_returned_retry_or_dead_is_what_raising_says() -> None:
    with pytest.raises(RetryLater, match="the bank is closed") as later:
        take(workers.Retry(delay=timedelta(minutes=1), reason="the bank is closed"))
    assert later.value.delay == 60
    with pytest.raises(RetryLater) as whenever:
        take(workers.Retry())
    assert whenever.value.delay is None
    with pytest.raises(Reject, match="no such user"):
        take(workers.Dead("no such user"))


@pytest.mark.parametrize("error", [RetryLater(1), Snooze(1), Reject("no")])
def test_an_outcome_that_is_returned_where_it_should_be_raised_is_not_taken_for_done(error: Exception) -> None:
    with pytest.raises(type(error)):
        take(error)


@pytest.mark.parametrize(
    "value",
    [workers.Done(), workers.Retry(5, "busy"), workers.Dead("no"), RetryLater(5, "busy"), Snooze(5), Reject("no")],
)
def test_outcomes_travel_between_processes(value: Any) -> None:
    there = pickle.loads(pickle.dumps(value))
    assert type(there) is type(value)
    assert str(there) == str(value)
    assert getattr(there, "delay", None) == getattr(value, "delay", None)


@pytest.mark.parametrize("delay", [float("inf"), 1e20, timedelta.max])
def test_a_delay_that_postgresql_could_not_hold_is_refused(delay: float | timedelta) -> None:
    for make in (RetryLater, Snooze, workers.Retry):
        with pytest.raises(ValueError, match="a delay must be"):
            make(delay)


def test_a_delay_must_be_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        RetryLater(float("nan"))
