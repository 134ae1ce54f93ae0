"""The transaction of a transactional handler: its session, its first and last statement, what is repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import psycopg
import sqlalchemy.exc
from psycopg import AsyncClientCursor, AsyncConnection, ClientCursor
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine
from sqlalchemy import event as hooks
from sqlalchemy.engine import AdaptedConnection
from sqlalchemy.orm import Session, SessionTransaction

from outbox.failpoints import reach
from workers.database import SET_IF_DIRECT
from workers.delivery import keys, leases, results
from workers.errors import SessionOwnedError, Snooze, SupersededError
from workers.job import Job
from workers.outcome import DONE, Done
from workers.queries import sql
from workers.refusal import LOCK_NOT_AVAILABLE

_ADVICE = (
    "the worker ends this transaction together with the delivery's outcome, so that both stand or fall as one; remove "
    "{what}. For a part that may fail on its own use session.begin_nested(); to fail the attempt, raise"
)

SUPERSEDED = "another worker recorded an outcome first"

HELD = "another transaction holds this delivery's row open"
WAIT_BRIEFLY, WAIT_AS_BEFORE = "SET LOCAL lock_timeout = 2000", "SET LOCAL lock_timeout TO DEFAULT"
"""Around the rows that are written at a transaction's end, in milliseconds: nobody waits longer for one that another
transaction holds. What COMMIT itself waits for, at deferred constraints, is the handler's own."""

HELD_FOR = 1.0
"""Seconds that a run is put off whose delivery is held."""
_JOB = "outbox.job"
_DIRECT = "outbox.direct"

PREPARE_AFTER = 5
"""Executions after which a handler's statement is prepared, on a direct connection."""


class HandlerSession(Session):
    """A session whose transaction belongs to the worker. Savepoints are the handler's."""

    ours = False
    ended = False
    """The transaction was ended by somebody else."""

    def commit(self) -> None:
        """Refused: the worker commits."""
        self._refuse("session.commit()")
        super().commit()

    def rollback(self) -> None:
        """Refused: raise to roll everything back."""
        self._refuse("session.rollback()")
        super().rollback()

    def begin(self, nested: bool = False) -> Any:
        """Only savepoints: the transaction begins by itself."""
        if not nested:
            self._refuse("session.begin()")
        return super().begin(nested=nested)

    def close(self) -> None:
        """Refused: it would roll everything back. So does the end of `with session:`."""
        self._refuse("session.close(), or `with session:`")
        super().close()

    def reset(self) -> None:
        """Refused, as `close`."""
        self._refuse("session.reset()")
        super().reset()

    def invalidate(self) -> None:
        """Refused, as `close`."""
        self._refuse("session.invalidate()")
        super().invalidate()

    def _refuse(self, what: str) -> None:
        if not self.ours:
            raise SessionOwnedError(_ADVICE.format(what=what))


@hooks.listens_for(HandlerSession, "after_transaction_end")
def _end(session: HandlerSession, transaction: SessionTransaction) -> None:
    if transaction.parent is None and not session.ours:
        session.ended = True


def finish(session: Session, job: Job) -> None:
    """Commit, with the delivery's row as the last statement, and close.

    Raises `SupersededError` when another worker recorded an outcome first; nothing is committed then.
    """
    assert isinstance(session, HandlerSession)
    if job.closed or job.cause is not None:
        raise asyncio.CancelledError
    if session.ended:
        raise SessionOwnedError(_ADVICE.format(what="what ends it, such as session.get_transaction().rollback()"))
    reach("worker.committing")
    session.ours = True
    info = session.connection().info
    info[_JOB] = job
    try:
        session.commit()
    finally:
        # Left there by a flush that failed, it would be recorded by whatever commits on this connection next.
        info.pop(_JOB, None)
    reach("worker.committed")
    session.close()


def limit_idle(engine: Engine, seconds: float) -> None:
    """Let the server end a transaction of `engine` that is idle for longer than `seconds`.

    A direct connection is told once, and may prepare statements. Behind a pooler each transaction begins with it: there
    a session is the next client's after every transaction, with all that was set and prepared.
    """
    name, limit = "idle_in_transaction_session_timeout", f"{seconds * 1000:.0f}"

    @hooks.listens_for(engine, "connect")
    def _meet(connection: Any, record: Any) -> None:
        driver = record.driver_connection
        cursor = connection.cursor()
        cursor.execute(SET_IF_DIRECT, [name, limit, driver.info.backend_pid])
        record.info[_DIRECT] = cursor.fetchone() is not None
        cursor.close()
        connection.commit()
        if record.info[_DIRECT]:
            driver.prepare_threshold = PREPARE_AFTER

    @hooks.listens_for(engine, "reset")
    def _reset(given: Any, record: Any, state: Any) -> None:
        # COMMIT came with the last statement: mostly there is nothing to roll back, which takes as long to find out.
        if not state.terminate_only and given.info.transaction_status != TransactionStatus.IDLE:
            given.rollback()

    @hooks.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if not connection.info[_DIRECT]:
            # Not by set_config: a SELECT takes a snapshot, and the isolation level could not be chosen any more.
            connection.exec_driver_sql(f"SET LOCAL {name} = {limit}")


Write = Callable[[Connection, Job, str], None]


def record_on_commit(engine: Engine, schema: str, write: Write) -> None:
    """Let every COMMIT of `engine` be preceded by the row of the delivery that it ends, as `write` writes it, after
    whatever the handler and its hooks still wrote."""

    @hooks.listens_for(engine, "after_cursor_execute")
    def _said(connection: Connection, *_: Any) -> None:
        given: Any = connection.connection.dbapi_connection
        if given.info.transaction_status == TransactionStatus.IDLE:
            raise SessionOwnedError(_ADVICE.format(what="the statement that ended it, or AUTOCOMMIT"))

    @hooks.listens_for(engine, "commit")
    def _record(connection: Connection) -> None:
        try:
            job = connection.info.pop(_JOB, None)
            if job is None:
                raise SessionOwnedError(_ADVICE.format(what="what commits, such as connection.commit()"))
            write(connection, job, schema)
        except BaseException:
            # SQLAlchemy takes the transaction for ended: left open, it would be the next one's on this connection.
            try:
                connection.connection.rollback()
            except BaseException:
                connection.invalidate()
            raise


def write_outcome(connection: Connection, job: Job, schema: str) -> None:
    """The row of one delivery, as the end of its transaction. Raises as `commit_with`."""
    if job.lease is not None:
        finish_leased(connection, [(job, job.done)], schema)
    elif job.done is DONE:
        commit_with(connection, _commit_done(job, schema), schema)
    else:
        commit_with(connection, insert_with_results(connection, [(job, job.done)], schema), schema)


def finish_leased(connection: Connection, done: list[tuple[Job, Done]], schema: str) -> None:
    """The rows of retries that worked. Raises `SupersededError` if a lease is gone, and `Snooze` as `commit_with`."""
    jobs = [job for job, _ in done]
    name, params = "finish_done", keys(jobs)
    if any(outcome is not DONE for _, outcome in done):
        name, params = "finish_done_with_result", results(done)
    with _put_off():
        connection.exec_driver_sql(WAIT_BRIEFLY)
        rows = connection.exec_driver_sql(sql(name, schema), params | leases(jobs)).fetchall()
        connection.exec_driver_sql(WAIT_AS_BEFORE)
    if len(rows) != len(jobs):
        raise SupersededError(SUPERSEDED)


def commit_with(connection: Connection, rows: str, schema: str) -> None:
    """Send the statement that writes rows, and COMMIT, in one message, past SQLAlchemy: there is nothing in it for it
    to translate. If nothing was sent in this transaction BEGIN goes along, for which the driver would wait by itself.

    Nothing is committed when it raises: `SupersededError` if a row is there already, and `Snooze` if another
    transaction holds one, which may come to either end.
    """
    statement = f"{WAIT_BRIEFLY};\n{rows};\n{WAIT_AS_BEFORE};\nCOMMIT"
    given: Any = connection.connection.dbapi_connection
    try:
        if isinstance(given, AdaptedConnection):
            given.run_async(partial(_send, statement))
        else:
            _send_now(statement, given)
    except BaseException as error:
        if given.autocommit:
            # Nobody may get a connection that commits each statement.
            connection.invalidate(error)
        if isinstance(error, psycopg.errors.LockNotAvailable):
            raise Snooze(HELD_FOR, HELD) from None
        if isinstance(error, psycopg.errors.UniqueViolation) and _is_delivery(error.diag, schema):
            raise SupersededError(SUPERSEDED) from None
        if isinstance(error, psycopg.Error):
            raise _as_sqlalchemy(connection, given, error) from error
        raise


async def _send(statement: str, driver: psycopg.AsyncConnection[Any]) -> None:
    if driver.info.transaction_status != TransactionStatus.IDLE:
        await driver.execute(statement, prepare=False)
        return
    await driver.set_autocommit(True)
    await driver.execute(f"BEGIN;\n{statement}", prepare=False)
    await driver.set_autocommit(False)


def _send_now(statement: str, driver: psycopg.Connection[Any]) -> None:
    if driver.info.transaction_status != TransactionStatus.IDLE:
        driver.execute(statement, prepare=False)
        return
    driver.autocommit = True
    driver.execute(f"BEGIN;\n{statement}", prepare=False)
    driver.autocommit = False


def _as_sqlalchemy(connection: Connection, given: Any, error: psycopg.Error) -> BaseException:
    """What SQLAlchemy would make of an error: handlers declare its classes to be final, or not."""
    dialect: Any = connection.dialect
    gone = dialect.is_disconnect(error, given, None)
    return sqlalchemy.exc.DBAPIError.instance(
        "COMMIT", None, error, psycopg.Error, connection_invalidated=gone, dialect=dialect
    )


def _is_delivery(violated: psycopg.errors.Diagnostic, schema: str) -> bool:
    return violated.schema_name == schema and (violated.table_name or "").startswith("delivery")


@contextmanager
def _put_off() -> Iterator[None]:
    try:
        yield
    except sqlalchemy.exc.OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
            raise
        raise Snooze(HELD_FOR, HELD) from None


def _commit_done(job: Job, schema: str) -> str:
    # Text without parameters travels with its COMMIT in one message. An id, a name and a number need no quoting.
    statement = sql("commit_done", schema)
    return statement.replace("{id}", job.event_id).replace("{handler}", job.lane.name).replace("{at}", str(job.at))


def insert_with_results(connection: Connection, done: list[tuple[Job, Done]], schema: str) -> str:
    """The statement that writes the rows of first attempts that worked, with their results: for `commit_with`."""
    return merged(connection, sql("insert_with_result", schema), results(done))


def merged(connection: Connection, statement: str, params: dict[str, Any]) -> str:
    """The statement with its values put in, quoted by the driver."""
    driver: Any = connection.connection.driver_connection
    cursor = AsyncClientCursor if isinstance(driver, AsyncConnection) else ClientCursor
    return str(cursor(driver).mogrify(statement, params))


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
