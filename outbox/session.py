"""How events travel through a SQLAlchemy session, so that their INSERT is the last statement of its flush.

SQLAlchemy orders the statements of unrelated mappers by name. An event mapped like any other class could be inserted
before the UPDATE that takes its key's row lock, and so overtake an event of a transaction that holds that lock.

`PendingEvents` is therefore mapped against a SELECT. Such a class takes part in the unit of work (the session is dirty,
savepoints and rollbacks apply, `expunge` and `close` forget it) but has no table of its own to write to. Its flush only
collects the events and their connection; they are written when all else of that flush is, other listeners' work
included. SQLAlchemy never sees a column that it would want to fetch, refresh or return.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    BindParameter,
    Column,
    ColumnElement,
    Connection,
    MetaData,
    Table,
    Text,
    Uuid,
    cast,
    insert,
    inspect,
    select,
    type_coerce,
)
from sqlalchemy import event as hooks
from sqlalchemy.exc import ProgrammingError, UnboundExecutionError
from sqlalchemy.orm import Mapper, Session, UOWTransaction, object_session, registry
from sqlalchemy.types import UserDefinedType

from outbox.errors import ConfigurationError, SchemaError, TargetError
from outbox.event import Event
from outbox.payload import encode_headers
from outbox.schema import SCHEMA, event

_WAITING = "outbox.waiting"
_COLLECTED = "outbox.collected"
UNDEFINED = ("42P01", "3F000", "42703")
"""PostgreSQL's codes for a table, schema or column that is not there."""


class _Written(UserDefinedType[str]):
    """JSON that is text already: SQLAlchemy's own type would serialise it once more."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "json"

    def bind_expression(self, bindvalue: BindParameter[str]) -> ColumnElement[str]:
        return cast(type_coerce(bindvalue, Text()), JSON)


# Only the columns that are sent, so that the statement is cheap to look up in SQLAlchemy's cache. A Table and not a
# table(), which a schema_translate_map passes by.
_INSERT = insert(
    Table(
        "event",
        MetaData(schema=SCHEMA),
        Column("id", Uuid()),
        Column("name", Text()),
        Column("key", Text()),
        Column("payload", _Written()),
        Column("headers", _Written()),
        implicit_returning=False,
    )
)

# The same for drivers with psycopg's style of parameters, handed to them as it is: SQLAlchemy's compiled form takes
# about 30 µs more, a tenth of what the first event of a request costs (benchmarks/add_cost.py).
_PYFORMAT = (
    f"INSERT INTO {SCHEMA}.event (id, name, key, payload, headers)"
    " VALUES (%(id)s, %(name)s, %(key)s, %(payload)s::json, %(headers)s::json)"
)


class PendingEvents:
    """The events that one flush of a session will write."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.id: UUID = events[0].id
        self.events = list(events)


_rows = select(event.c.id).subquery("outbox_event")
_mapper = registry().map_imperatively(PendingEvents, _rows, primary_key=[_rows.c.id], eager_defaults=False)


def put(session: Session, events: Sequence[Event]) -> None:
    """Let `events` (one at least) be written with the session's next flush. No I/O.

    Raises `ConfigurationError` when a session with several binds has none for the outbox.
    """
    waiting: PendingEvents | None = session.info.get(_WAITING)
    # Never across a savepoint: SQLAlchemy flushes before it sets one.
    if waiting is not None and inspect(waiting).pending:
        waiting.events.extend(events)
        return
    # Set while a flush executes its statements: a mapper's hook adds. SQLAlchemy would warn of a new object now.
    if getattr(session, "_warn_on_events", False):
        _collect_for(session, None, events)
        return
    if session.bind is None:
        try:
            session.get_bind(_mapper)
        except UnboundExecutionError as error:
            raise ConfigurationError(
                "this session has no engine for the outbox: add `outbox.schema.event: engine` to its `binds`, with the "
                "engine that the business data goes to"
            ) from error
    waiting = PendingEvents(events)
    session.add(waiting)
    session.info[_WAITING] = waiting


def pending(session: Session) -> list[Event]:
    """The events that wait for the session's next flush, in the order they were added."""
    return [each for row in session.new if isinstance(row, PendingEvents) for each in row.events]


def connection_of(session: Session) -> Connection:
    """The connection of the running transaction to the database that has the outbox."""
    return session.connection(bind_arguments={"mapper": _mapper})


def write(connection: Connection, events: Sequence[Event]) -> None:
    """INSERT `events` now: one statement, executed once per event in one batch.

    Raises `TargetError` for a database other than PostgreSQL and `SchemaError` when the tables are missing.
    """
    dialect = connection.dialect
    if dialect.name != "postgresql":
        raise TargetError(f"events are stored in PostgreSQL, and this database is {dialect.name}")
    rows = [row(each) for each in events]
    try:
        if dialect.paramstyle == "pyformat" and not connection.get_execution_options().get("schema_translate_map"):
            connection.exec_driver_sql(_PYFORMAT, rows if len(rows) > 1 else rows[0])
        else:
            connection.execute(_INSERT, rows)
    except ProgrammingError as error:
        if sqlstate(error) in UNDEFINED:
            raise SchemaError(f"the schema {SCHEMA} is absent or not of this release: run `outbox migrate`") from error
        raise


def sqlstate(error: ProgrammingError) -> str | None:
    """PostgreSQL's code of an error, as psycopg and asyncpg call it or as psycopg2 does."""
    found: str | None = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    return found


def row(each: Event) -> dict[str, Any]:
    """An event as the INSERT's parameters."""
    return {
        "id": each.id,
        "name": each.name,
        "key": each.key,
        "payload": each.payload_json,
        "headers": encode_headers(each.headers),
    }


def _collect(_mapper: Mapper[PendingEvents], connection: Connection, target: PendingEvents) -> None:
    session = object_session(target)
    assert session is not None
    session.info.pop(_WAITING, None)
    _collect_for(session, connection, target.events)


def _collect_for(session: Session, connection: Connection | None, events: Sequence[Event]) -> None:
    """None is the connection that the session has for the outbox; it may be about to be opened."""
    session.info.setdefault(_COLLECTED, {}).setdefault(connection, []).extend(events)


def _forget(session: Session, _context: UOWTransaction, _objects: object) -> None:
    """A flush that failed half-way left what it had collected."""
    session.info.pop(_COLLECTED, None)


def _write_collected(session: Session, _context: UOWTransaction) -> None:
    collected: dict[Connection | None, list[Event]] | None = session.info.pop(_COLLECTED, None)
    if collected:
        for connection, events in collected.items():
            write(connection_of(session) if connection is None else connection, events)


hooks.listen(PendingEvents, "before_insert", _collect)
hooks.listen(Session, "before_flush", _forget)
hooks.listen(Session, "after_flush_postexec", _write_collected)
