"""Help for users' tests: which events did this transaction add?

Works on real PostgreSQL, like the code under test. With an `AsyncSession`: `await session.run_sync(testing.added)`.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, Text, cast, func, select
from sqlalchemy.orm import Session, scoped_session

from outbox.event import Event
from outbox.schema import event
from outbox.session import connection_of, pending


def added(session: Session | scoped_session[Any] | Connection, *, committed: bool = False) -> list[Event]:
    """The events of the running transaction, in order: those already written and those that wait for the next flush.

    Nothing is flushed. A test that wraps the code under test in an outer transaction (`join_transaction_mode=
    "create_savepoint"`) sees its "committed" events too. `committed=True` gives every event that is visible.

    >>> signup(session, "a@example.org")
    >>> [event.name for event in outbox.testing.added(session)]
    ['send_email']
    """
    if isinstance(session, scoped_session):
        session = session()
    waiting = pending(session) if isinstance(session, Session) else []
    query = select(
        event.c.id,
        event.c.name,
        cast(event.c.payload, Text),
        event.c.key,
        cast(event.c.headers, Text),
        event.c.created_at,
    ).order_by(event.c.seq)
    if not committed:
        query = query.where(event.c.xid == func.pg_current_xact_id_if_assigned())
    connection = connection_of(session) if isinstance(session, Session) else session
    return [
        Event(id, name, payload, key, json.loads(headers) if headers else {}, created_at)
        for id, name, payload, key, headers, created_at in connection.execute(query)
    ] + waiting


def assert_added(session: Session | scoped_session[Any] | Connection, name: str, /, **payload: object) -> Event:
    """The one event of this name in the running transaction whose payload has these values (JSON values; others may be
    there). AssertionError when there is none or more than one.

    >>> outbox.testing.assert_added(session, "send_email", user_id=7).key
    """
    events = added(session)
    found = [
        each
        for each in events
        if each.name == name
        and all(key in each.payload and each.payload[key] == value for key, value in payload.items())
    ]
    if len(found) != 1:
        listed = "".join(f"\n  {each.name} {each.payload_json}" for each in events) or " none"
        raise AssertionError(f"expected one event {name!r} with {payload!r}, found {len(found)}; added were:{listed}")
    return found[0]
