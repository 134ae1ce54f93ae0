from __future__ import annotations

from typing import Any

import pytest

import workers
from workers.errors import HandlerTimeoutError, PayloadMismatchError, TransactionFailedError
from workers.verdict import Verdicts, verdicts


def test_without_a_word_nothing_is_final_but_what_was_rejected() -> None:
    verdict = verdicts(None, None)
    assert not any(map(verdict.final, [ValueError(), SystemExit(), HandlerTimeoutError(), workers.RetryLater(1)]))
    assert verdict.final(workers.Reject("no"))


def test_what_dead_on_names_is_final_and_so_are_its_subclasses() -> None:
    verdict = verdicts(None, LookupError)
    assert verdict.final(LookupError())
    assert verdict.final(KeyError())
    assert not verdict.final(ValueError())


def test_with_retry_on_everything_else_is_final() -> None:
    verdict = verdicts([ConnectionError], None)
    assert not verdict.final(ConnectionResetError())
    assert verdict.final(ValueError())
    assert verdict.final(HandlerTimeoutError())
    assert verdict.final(SystemExit())


def test_dead_on_may_name_a_part_of_what_retry_on_has() -> None:
    verdict = verdicts(OSError, FileNotFoundError)
    assert verdict.final(FileNotFoundError())
    assert not verdict.final(PermissionError())


@pytest.mark.parametrize("listed", [TimeoutError, OSError, Exception])
def test_the_timeout_of_a_run_counts_as_a_timeout_error(listed: type[Exception]) -> None:
    assert not verdicts(listed, None).final(HandlerTimeoutError())
    assert verdicts(None, listed).final(HandlerTimeoutError())


@pytest.mark.parametrize("error", [PayloadMismatchError("no"), TransactionFailedError("no")])
def test_what_heals_by_itself_is_tried_again_whatever_retry_on_says(error: Exception) -> None:
    assert not verdicts(ConnectionError, None).final(error)
    assert verdicts(None, type(error)).final(error)


def test_what_a_handler_says_itself_stands() -> None:
    verdict = verdicts(None, Exception)
    assert not verdict.final(workers.RetryLater(1))
    assert not verdicts(ConnectionError, None).final(workers.Snooze(1))


@pytest.mark.parametrize(
    ("retry_on", "dead_on"),
    [(ValueError, ValueError), (ConnectionError, OSError), ((KeyError, OSError), (ValueError, LookupError))],
)
def test_what_would_never_be_tried_again_is_refused(retry_on: Any, dead_on: Any) -> None:
    with pytest.raises(workers.HandlerError, match="take it out of one of them"):
        verdicts(retry_on, dead_on)


@pytest.mark.parametrize("wrong", ["ValueError", ValueError("x"), int, (ValueError, "KeyError"), 5, object()])
def test_what_is_no_exception_class_is_refused_with_an_example(wrong: Any) -> None:
    for given in ({"retry_on": wrong}, {"dead_on": wrong}):
        with pytest.raises(workers.HandlerError, match="takes exception classes, like"):
            workers.App().handler("e", **given)
        with pytest.raises(workers.HandlerError, match="takes exception classes, like"):
            workers.App(**given)


@pytest.mark.parametrize("said", [workers.RetryLater, workers.Snooze, workers.Reject])
def test_what_says_itself_what_becomes_of_the_event_cannot_be_listed(said: Any) -> None:
    with pytest.raises(workers.HandlerError, match="says itself"):
        verdicts(said, None)


def test_an_empty_retry_on_is_refused() -> None:
    with pytest.raises(workers.HandlerError, match="max_attempts=1"):
        verdicts((), None)


def test_the_app_says_what_handlers_do_not() -> None:
    app = workers.App(backoff=5, retry_on=OSError, dead_on=(ValueError, FileNotFoundError))

    @app.handler("e")
    def as_the_app_says() -> None: ...

    @app.handler("e", backoff=[1, 2], retry_on=KeyError, dead_on=())
    def otherwise() -> None: ...

    said, other = app.handlers["as_the_app_says"], app.handlers["otherwise"]
    assert said.verdicts == Verdicts((OSError,), (ValueError, FileNotFoundError))
    assert said.backoff.delay(3, 0.5) == 5
    assert other.verdicts == Verdicts((KeyError,), ())
    assert other.backoff.delay(3, 0.5) == 2


def test_a_handler_that_contradicts_its_app_is_refused() -> None:
    with pytest.raises(workers.HandlerError, match="dead_on=ValueError leaves nothing of retry_on=UnicodeError"):
        workers.App(dead_on=ValueError).handler("e", retry_on=UnicodeError)
