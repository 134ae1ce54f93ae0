"""Dead letters: deliveries that failed for good and that nobody has put back yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row, tuple_row

from outbox.admin.page import LISTED, Page, by_index
from outbox.admin.selection import LETTERS, Selection, group_of
from outbox.admin.statement import statement
from outbox.database import Database, opened


@dataclass(frozen=True)
class DeadLetter:
    """A delivery that failed for good, with a copy of its event. `payload_json` is the text that was stored.

    `traceback` is the last error with its causes and where they were raised; None if no run raised one.
    """

    event_id: UUID
    handler: str
    event_name: str
    key: str | None
    attempts: int
    error: str
    died_at: datetime
    event_created_at: datetime
    payload_json: str
    headers: Mapping[str, str] | None
    traceback: str | None = None


def dead_letters(
    database: Database,
    which: Selection | None = None,
    *,
    schema: str | None = None,
    limit: int = 100,
    oldest_first: bool = False,
    look_at: int = LISTED,
) -> Page[DeadLetter]:
    """The dead letters that fit, the latest first unless `oldest_first`, at most `limit`. Raises as `status` does.

    Looks at the first `look_at` of the ids or the time that are selected; the page says how far that went.

    >>> [letter.error for letter in dead_letters("postgresql:///shop", Selection(handler="send_email"))]
    ['MailboxFull: ...']
    """
    with (
        opened(database, schema) as (connection, where),
        by_index(connection),
        connection.cursor(row_factory=class_row(DeadLetter)) as cursor,
    ):
        span, selected, asked = _conditions(which, where)
        asked |= {"limit": limit, "most": look_at}
        order = "ASC" if oldest_first else "DESC"
        query = statement("letters", where, selected, span=span, order=order)
        found = Page(cursor.execute(query, asked))
        if len(found) < limit:
            found.reached = _beyond(connection, where, span, asked, order)
        return found


def _conditions(which: Selection | None, schema: str) -> tuple[str, str, dict[str, Any]]:
    """The span and the rest of a selection as SQL, and the parameters of both."""
    selection = which or Selection()
    span, asked = selection.span.conditions(LETTERS, schema)
    selected, given = selection.rest.conditions(LETTERS, schema)
    return span, selected, asked | given


def _beyond(
    connection: psycopg.Connection[Any], schema: str, span: str, asked: dict[str, Any], order: str = "DESC"
) -> datetime | None:
    """When the first letter died that was not looked at."""
    query = f"SELECT l.died_at FROM {schema}.dead_letter AS l WHERE l.replayed_at IS NULL AND {span}"
    with connection.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(f"{query} ORDER BY l.died_at {order} OFFSET %(most)s LIMIT 1".encode(), asked).fetchone()
    return None if row is None else row[0]


def count_dead_letters(database: Database, which: Selection | None = None, *, schema: str | None = None) -> int:
    """How many dead letters fit. Raises as `status` does."""
    with opened(database, schema) as (connection, where), connection.cursor(row_factory=tuple_row) as cursor:
        selected, asked = (which or Selection()).conditions(LETTERS, where)
        row = cursor.execute(statement("count_letters", where, selected), asked).fetchone()
        return int(row[0]) if row else 0


@dataclass(frozen=True)
class ErrorGroup:
    """Dead letters of one handler and event name whose errors differ in numbers and ids only.

    `group` selects them: `Selection(group=...)`. `error` is that of the latest letter, whose event is `latest_id`.
    """

    group: str
    handler: str
    event_name: str
    count: int
    first_at: datetime
    latest_at: datetime
    latest_id: UUID
    error: str


def error_groups(
    database: Database,
    which: Selection | None = None,
    *,
    schema: str | None = None,
    limit: int = 100,
    look_at: int = LISTED,
) -> Page[ErrorGroup]:
    """The dead letters that fit in groups by error, the largest first, at most `limit` groups.

    The latest `look_at` letters of the ids or the time that are selected are looked at; the page says how far that
    went. Raises as `status` does.

    >>> [(group.error, group.count) for group in error_groups("postgresql:///shop", Selection(handler="send_email"))]
    [('MailboxFull: user 7 has 1,024 letters', 12)]
    """
    with (
        opened(database, schema) as (connection, where),
        by_index(connection),
        connection.cursor(row_factory=class_row(ErrorGroup)) as cursor,
    ):
        span, selected, asked = _conditions(which, where)
        asked |= {"limit": limit, "most": look_at}
        query = statement("error_groups", where, selected, span=span, group=group_of("l.error"))
        found = Page(cursor.execute(query, asked))
        found.reached = _beyond(connection, where, span, asked)
        return found
