"""Asking for one event's story: by a connection or URL, or by a request's own session."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Awaitable
from functools import cache
from typing import TYPE_CHECKING, Any, overload
from uuid import UUID

from psycopg.rows import tuple_row

from outbox.admin.state import ALIVE
from outbox.admin.statement import statement
from outbox.admin.story import Story
from outbox.admin.telling import tell
from outbox.database import Database, opened
from outbox.errors import SchemaError, TargetError
from outbox.names import lock_id

if TYPE_CHECKING:
    from sqlalchemy import Connection, TextClause
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session


def story(database: Database, id: UUID | str, *, schema: str | None = None) -> Story:
    """One event from `outbox.add` to its outcomes, and what it waits for. An id that nobody knows is a story, too.

    Raises `ValueError` for what is no UUID, and otherwise as `outbox.admin.status` does.

    >>> story("postgresql:///shop", "0197b6b0-5d3e-7c2a-9f00-3d2b6c1a7e55").state
    'done'
    """
    asked = _asked(id, schema)
    with opened(database, schema) as (connection, where), connection.cursor(row_factory=tuple_row) as cursor:
        asked["lock"] = lock_id("relay", where)
        row = cursor.execute(statement("story", where), asked).fetchone()
        assert row is not None
        return tell(_uuid(id), json.loads(row[0]))


@overload
def status(session: Session | scoped_session[Session] | Connection, id: UUID | str, /) -> Story: ...


@overload
def status(
    session: AsyncSession | async_scoped_session[AsyncSession] | AsyncConnection, id: UUID | str, /
) -> Awaitable[Story]: ...


def status(session: Any, id: UUID | str, /) -> Story | Awaitable[Story]:
    """One event's story, read through a session of yours: for an endpoint that answers "where is it?".

    Arguments:
        session: a SQLAlchemy `Session` or Core `Connection`, or one of their asyncio kinds: then the result is awaited.
            Its role must be allowed to read the schema: `outbox migrate --roles-sql --reader NAME` prints the grants.
            Nothing is flushed or committed, and Redis is not asked.
        id: the outbox id, as `outbox.add` returned it.

    Returns a `Story`: `state` for a glance, `moments` as a time line, `handlers` with attempts and errors, `waits` with
    what it waits for. An id that nobody knows has the state "unknown".

    Raises `ValueError` for what is no UUID, `TargetError` for what is no session, and `SchemaError` when `outbox
    migrate` has not run.

    >>> (await outbox.status(session, event_id)).state
    'retrying'
    """
    checked = _uuid(id)
    asynchronous = sys.modules.get("sqlalchemy.ext.asyncio")
    if asynchronous is not None and isinstance(
        session, (asynchronous.AsyncSession, asynchronous.AsyncConnection, asynchronous.async_scoped_session)
    ):
        return _awaited(session, checked)
    return _read(session, checked)


async def _awaited(session: Any, id: UUID) -> Story:
    asynchronous = sys.modules["sqlalchemy.ext.asyncio"]
    if isinstance(session, asynchronous.async_scoped_session):
        session = session()
    found: Story = await session.run_sync(_read, id)
    return found


def _read(session: Any, id: UUID) -> Story:
    from sqlalchemy import Connection
    from sqlalchemy.exc import ProgrammingError
    from sqlalchemy.orm import Session, scoped_session

    from outbox.schema import SCHEMA, event
    from outbox.session import UNDEFINED, sqlstate

    if isinstance(session, scoped_session):
        session = session()
    if isinstance(session, Session):
        # With the engine that the outbox's tables have, where a session has several.
        connection = session.connection(bind_arguments={"clause": event.select()})
    elif isinstance(session, Connection):
        connection = session
    else:
        raise TargetError(
            f"outbox.status reads through a SQLAlchemy session or connection, not {type(session).__name__}"
        )
    try:
        found = connection.execute(_query(SCHEMA), _asked(id, SCHEMA)).scalar_one()
    except ProgrammingError as error:
        if sqlstate(error) in UNDEFINED:
            raise SchemaError(f"the schema {SCHEMA} is absent or not of this release: run `outbox migrate`") from error
        raise
    return tell(id, json.loads(found))


@cache
def _query(schema: str) -> TextClause:
    """The statement with SQLAlchemy's style of parameters, which fits every driver."""
    from sqlalchemy import text

    return text(re.sub(r"%\((\w+)\)s", r":\1", statement("story", schema).decode()))


def _asked(id: UUID | str, schema: str | None) -> dict[str, Any]:
    return {"id": str(_uuid(id)), "lock": lock_id("relay", schema or "outbox"), "alive": ALIVE.total_seconds()}


def _uuid(id: UUID | str) -> UUID:
    if isinstance(id, UUID):
        return id
    try:
        return UUID(id)
    except ValueError:
        raise ValueError(f"{id!r} is not an outbox id, which is a UUID") from None
