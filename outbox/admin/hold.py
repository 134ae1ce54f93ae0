"""Holding back by hand: a handler, all handlers of an event, or the relay rest until they are resumed.

A paused handler starts nothing new within about a second; what runs comes to its end, and what its workers had fetched
goes back to PostgreSQL at no cost. A paused relay publishes nothing. Nothing is lost by either: what is added meanwhile
waits in PostgreSQL.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from psycopg.rows import class_row, tuple_row

from outbox.admin import audit
from outbox.database import Database, opened
from outbox.errors import UnknownError
from outbox.names import check_schema

What = Literal["handler", "event", "relay"]
"""What can be held back; `event` means all handlers of that event name, also those that are yet to come."""


@dataclass(frozen=True)
class Hold:
    """Something that rests: what, its name (empty for the relay), since when, by whom, and why."""

    what: What
    name: str
    since: datetime
    actor: str
    reason: str | None


def holds(database: Database, *, schema: str | None = None) -> list[Hold]:
    """Everything that is held back, the oldest first. Raises as `status` does.

    >>> [hold.reason for hold in holds("postgresql:///shop")]
    ['the bank is closed']
    """
    with opened(database, schema) as (connection, where), connection.cursor(row_factory=class_row(Hold)) as cursor:
        query = f"SELECT what, name, since, actor, reason FROM {check_schema(where)}.hold ORDER BY since"
        return cursor.execute(query.encode()).fetchall()


def pause(
    database: Database,
    what: What,
    name: str = "",
    *,
    schema: str | None = None,
    reason: str | None = None,
    actor: str | None = None,
) -> bool:
    """Hold a handler, an event's handlers or the relay back; False if it is held already, and then by whom stays.

    Raises `UnknownError` for a handler or event that no worker ever announced, and otherwise as `status` does.

    >>> pause("postgresql:///shop", "handler", "send_email", reason="the mail server is down")
    True
    """
    with opened(database, schema) as (connection, where), connection.cursor(row_factory=tuple_row) as cursor:
        with connection.transaction():
            if what != "relay":
                column = "name" if what == "handler" else "event_name"
                query = f"SELECT FROM {check_schema(where)}.handler WHERE {column} = %s LIMIT 1"
                if cursor.execute(query.encode(), [name]).fetchone() is None:
                    known = f"handler {name!r}" if what == "handler" else f"handler of an event {name!r}"
                    raise UnknownError(f"there is no {known}; `outbox status` shows those that there are")
            cursor.execute(
                f"INSERT INTO {check_schema(where)}.hold (what, name, actor, reason) VALUES (%s, %s, %s, %s)"
                " ON CONFLICT DO NOTHING".encode(),
                [what, name, actor or audit.current_actor(), reason],
            )
            changed = cursor.rowcount == 1
            if changed:
                audit.note(cursor, where, "pause", {"what": what, "name": name}, actor=actor, reason=reason)
        return changed


def resume(
    database: Database,
    what: What,
    name: str = "",
    *,
    schema: str | None = None,
    reason: str | None = None,
    actor: str | None = None,
) -> bool:
    """Let what was held back go on; False if it was not held. Raises as `status` does.

    A handler whose event is held back as well goes on resting until that is resumed, too.

    >>> resume("postgresql:///shop", "handler", "send_email", reason="the mail server is back")
    True
    """
    with opened(database, schema) as (connection, where), connection.cursor(row_factory=tuple_row) as cursor:
        with connection.transaction():
            query = f"DELETE FROM {check_schema(where)}.hold WHERE what = %s AND name = %s"
            changed = cursor.execute(query.encode(), [what, name]).rowcount == 1
            if changed:
                audit.note(cursor, where, "resume", {"what": what, "name": name}, actor=actor, reason=reason)
        return changed
