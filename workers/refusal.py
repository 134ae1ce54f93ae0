"""Which errors of PostgreSQL concern one delivery and not the server, and what is recorded in its place. Pure.

A server that is away comes back, and a missing table or privilege somebody mends: both are waited for, by all. A row
that a constraint refuses, a value that the database cannot hold, and a row that another transaction holds open concern
their own delivery: no other may wait for it.
"""

from __future__ import annotations

from dataclasses import replace

import psycopg

from outbox.errors import SchemaError
from workers.errors import RowRefusedError
from workers.outcome import Dead, Outcome, Retry, Snoozed

LOCK_NOT_AVAILABLE = "55P03"

_OF_A_ROW = ("22", "23", "44", "54", "P0")
"""Classes of SQLSTATE: data, constraints, check options, limits of a value, and what triggers raise."""

_OF_A_PERSON = ("28", "3D", "3F", "42")
"""Classes of SQLSTATE that last until somebody mends something: logins, databases, schemas, tables and privileges."""


def refusal(error: BaseException) -> RowRefusedError | None:
    """What `error` says about one row; None when it is about the server, the connection or the schema.

    >>> refusal(psycopg.errors.LockNotAvailable("canceling statement due to lock timeout"))
    RowRefusedError('LockNotAvailable (55P03)')
    """
    if not isinstance(error, psycopg.Error):
        return None
    state = error.sqlstate or ""
    if state != LOCK_NOT_AVAILABLE and state[:2] not in _OF_A_ROW and not isinstance(error, psycopg.DataError):
        return None
    # Not its message: that shows the whole row.
    name = error.diag.constraint_name
    return RowRefusedError(
        f"{type(error).__name__} ({state or 'not sent'})" + (f", constraint {name}" if name else ""),
        held=state == LOCK_NOT_AVAILABLE,
    )


def needs_a_person(error: BaseException) -> bool:
    """Whether waiting alone will not do: somebody has to grant, migrate or drop something.

    >>> needs_a_person(psycopg.errors.InsufficientPrivilege("permission denied for table delivery"))
    True
    """
    if isinstance(error, RowRefusedError):
        return not error.held
    if isinstance(error, SchemaError):
        return True
    return (getattr(error, "sqlstate", None) or "")[:2] in _OF_A_PERSON


def stand_in(outcome: Outcome | None, refused: RowRefusedError) -> Outcome | None:
    """What to record in the place of an outcome that was refused: the same, with a text that says so for its own.

    >>> stand_in(Dead("ValueError: …"), RowRefusedError("UntranslatableCharacter (22P05)"))
    Dead(reason='PostgreSQL did not take the error of this attempt: UntranslatableCharacter (22P05)')
    """
    text = f"PostgreSQL did not take the error of this attempt: {refused}"
    if refused.held:
        return outcome
    if isinstance(outcome, Dead):
        return Dead(text)
    return replace(outcome, reason=text) if isinstance(outcome, Retry | Snoozed) else outcome
