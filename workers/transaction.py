"""The transaction of a transactional handler: its session, its last statement, and which failures may be repeated."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import psycopg
import sqlalchemy.exc
from sqlalchemy.orm import Session

from workers.database import array
from workers.errors import SessionOwnedError, SupersededError
from workers.job import Job
from workers.queries import sql

_ADVICE = (
    "the worker ends this transaction together with the delivery's outcome, so that both stand or fall as one; remove "
    "session.{what}(). For a part that may fail on its own use session.begin_nested(); to fail the attempt, raise"
)


class HandlerSession(Session):
    """A session whose transaction belongs to the worker. Savepoints are the handler's."""

    ours = False

    def commit(self) -> None:
        """Refused: the worker commits."""
        if not self.ours:
            raise SessionOwnedError(_ADVICE.format(what="commit"))
        super().commit()

    def rollback(self) -> None:
        """Refused: raise to roll everything back."""
        if not self.ours:
            raise SessionOwnedError(_ADVICE.format(what="rollback"))
        super().rollback()

    def begin(self, nested: bool = False) -> Any:
        """Only savepoints: the transaction begins by itself."""
        if not nested and not self.ours:
            raise SessionOwnedError(_ADVICE.format(what="begin"))
        return super().begin(nested=nested)


def finish(session: Session, job: Job, schema: str) -> None:
    """Write the delivery's row as the last statement and commit. Raises `SupersededError` if there is one already."""
    assert isinstance(session, HandlerSession)
    if job.closed or job.cause is not None:
        raise asyncio.CancelledError
    session.ours = True
    session.flush()
    facts = {"ids": array([job.event_id]), "handlers": array([job.lane.name]), "ats": array([str(job.at)])}
    connection = session.connection()
    if job.lease is None:
        written = connection.exec_driver_sql(sql("done", schema), facts).rowcount == 1
    else:
        facts["leases"] = array([job.lease])
        written = bool(connection.exec_driver_sql(sql("finish_done", schema), facts).fetchall())
    if not written:
        raise SupersededError("another worker recorded an outcome first")
    session.commit()


def repeatable(error: BaseException) -> Literal["conflict", "connection"] | None:
    """Whether a transaction that ended with `error` may simply be tried again, and why."""
    original = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else error
    state = getattr(original, "sqlstate", None)
    if state in ("40001", "40P01"):
        return "conflict"
    if isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated:
        return "connection"
    if state is None:
        return "connection" if isinstance(original, psycopg.OperationalError | psycopg.InterfaceError) else None
    return "connection" if state[:2] == "08" or state in ("57P01", "57P02", "57P03", "25P03") else None
