"""Making all checks, each for itself: what one cannot find out, or trips over, keeps no other from being made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import psycopg
import redis

from console.doctor.checks import CHECKS
from console.doctor.finding import Check, Finding, Severity
from console.doctor.installation import Installation
from console.faults import explained
from outbox.database import UnreachableError
from outbox.errors import OutboxError
from outbox.settings import Settings

_AWAY = (OutboxError, redis.ConnectionError, redis.TimeoutError)
"""What a server that is away, or a schema that is not there, looks like."""


def examine(
    settings: Settings, checks: Sequence[Check] = CHECKS, *, progress: Callable[[str], None] = lambda name: None
) -> list[Finding]:
    """What every check finds, in their order. Changes nothing, and each check is bounded in time.

    `progress` is told the name of a check before it is made. Raises `ConfigurationError` when the settings do not say
    where the database is; servers that are away are findings.

    >>> [finding.check for finding in examine(settings) if finding.severity is Severity.ERROR]
    []
    """
    settings.libpq_url()
    with closing(Installation(settings)) as installation:
        away: dict[str, str] = {}
        return [finding for check in checks for finding in _made(check, installation, away, progress)]


def _made(
    check: Check, installation: Installation, away: dict[str, str], progress: Callable[[str], None]
) -> Iterator[Finding]:
    missing = [server for server in check.asks if server in away and server != check.name]
    if missing:
        yield Finding(check.name, Severity.INFO, f"not checked: it needs {' and '.join(missing)}", made=False)
        return
    progress(check.name)
    try:
        found = check.look(installation)
    except Exception as problem:
        yield _tripped(check, problem, away)
    else:
        remedy = None if found.severity is Severity.OK else found.remedy or check.remedy
        yield Finding(check.name, found.severity, found.evidence, remedy)


def _tripped(check: Check, problem: Exception, away: dict[str, str]) -> Finding:
    """A check that could not be made."""
    said = why(problem)
    if check.name in check.asks and isinstance(problem, _AWAY):
        away[check.name] = said
        return Finding(check.name, Severity.ERROR, said, check.remedy)
    if isinstance(problem, psycopg.errors.InsufficientPrivilege | redis.exceptions.NoPermissionError):
        return Finding(check.name, Severity.INFO, f"not checked: {said}", "ask as a user who may", made=False)
    return Finding(check.name, Severity.WARNING, f"not checked: {said}", "`outbox doctor` again", made=False)


def why(problem: Exception) -> str:
    """What went wrong in one line that says where and shows no password."""
    if isinstance(problem, redis.ConnectionError | redis.TimeoutError | OSError) and not isinstance(
        problem, UnreachableError
    ):
        return f"cannot reach Redis: {' '.join(str(problem).split())}"
    if isinstance(problem, psycopg.errors.QueryCanceled):
        return "PostgreSQL took longer than a check may"
    line = explained(problem) if isinstance(problem, psycopg.Error | redis.RedisError | OutboxError) else None
    return " ".join((line or f"{type(problem).__name__}: a fault of this check").split())
