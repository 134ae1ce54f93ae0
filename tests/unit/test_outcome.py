from __future__ import annotations

from datetime import timedelta

import pytest

from workers.backoff import Backoff
from workers.errors import Reject, RetryLater, Snooze
from workers.outcome import Dead, Outcome, Retry, Snoozed, clean, describe, judge


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


def test_an_error_says_where_it_was_raised() -> None:
    try:
        raise ValueError("no")
    except ValueError as error:
        text = describe(error)
    assert text.startswith("ValueError: no (at test_outcome.py:")


def test_an_error_that_cannot_be_shown_is_still_described() -> None:
    class Rude(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert describe(Rude()).startswith("Rude: (its message")


def test_an_error_is_made_storable() -> None:
    assert clean("a\x00b\ud800") == "a\\x00b\\ud800"
    assert len(clean("x" * 10_000)) == 4000


def test_a_delay_must_be_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        RetryLater(float("nan"))
