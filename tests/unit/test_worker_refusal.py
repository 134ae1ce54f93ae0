"""Which errors concern one delivery, which the server, and what is recorded in the place of what was refused."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

import workers
from workers.crash import Crashed
from workers.errors import RowRefusedError
from workers.outcome import DONE, Outcome, Snoozed
from workers.refusal import needs_a_person, refusal, stand_in


@pytest.mark.parametrize(
    "error",
    [
        errors.CheckViolation("no"),
        errors.NotNullViolation("no"),
        errors.UntranslatableCharacter("no"),
        errors.StatementTooComplex("no"),
        errors.RaiseException("a trigger"),
        psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes"),
    ],
)
def test_what_concerns_a_row_does_not_concern_the_server(error: psycopg.Error) -> None:
    refused = refusal(error)
    assert refused is not None
    assert not refused.held
    assert needs_a_person(refused)
    assert str(error) not in str(refused)


def test_a_row_that_is_held_is_free_again_some_day() -> None:
    refused = refusal(errors.LockNotAvailable("canceling statement due to lock timeout"))
    assert refused is not None
    assert refused.held
    assert not needs_a_person(refused)


@pytest.mark.parametrize(
    "error",
    [
        errors.DiskFull("no"),
        errors.AdminShutdown("no"),
        errors.DeadlockDetected("no"),
        errors.ReadOnlySqlTransaction("a standby"),
        psycopg.OperationalError("the connection is closed"),
        psycopg.InterfaceError("the connection is closed"),
        TimeoutError(),
        ConnectionRefusedError(),
    ],
)
def test_a_server_that_is_away_is_waited_for_by_all(error: BaseException) -> None:
    assert refusal(error) is None
    assert not needs_a_person(error)


@pytest.mark.parametrize("error", [errors.InsufficientPrivilege("no"), errors.UndefinedTable("no")])
def test_what_only_a_person_can_mend_is_waited_for_by_all_and_said_to_be_so(error: psycopg.Error) -> None:
    assert refusal(error) is None
    assert needs_a_person(error)


@pytest.mark.parametrize(
    "outcome", [workers.Dead("no", "where"), workers.Retry(3, "no"), Snoozed(3, "no"), Crashed(3, "no")]
)
def test_a_refused_failure_stays_what_it_is_and_loses_its_text(outcome: Outcome) -> None:
    replaced = stand_in(outcome, RowRefusedError("CheckViolation (23514)"))
    assert type(replaced) is type(outcome)
    assert not isinstance(replaced, workers.Done | None)
    assert replaced.reason == "PostgreSQL did not take the error of this attempt: CheckViolation (23514)"
    assert getattr(replaced, "delay", 3) == 3
    assert getattr(replaced, "traceback", None) is None


@pytest.mark.parametrize("outcome", [DONE, None, workers.Dead("no")])
def test_an_outcome_whose_row_is_held_stays_as_it_is(outcome: Outcome | None) -> None:
    assert stand_in(outcome, RowRefusedError("LockNotAvailable (55P03)", held=True)) is outcome


def test_success_has_no_text_to_lose() -> None:
    assert stand_in(DONE, RowRefusedError("CheckViolation (23514)")) is DONE
