"""The log of events, each with what came of it at its handlers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from psycopg.rows import dict_row

from outbox.admin.page import LISTED, Page, by_index
from outbox.admin.selection import EVENTS, Selection
from outbox.admin.statement import statement
from outbox.database import Database, opened


@dataclass(frozen=True)
class Delivery:
    """What came of an event at one handler. `due_at` is set while it is retrying; `result` is what the handler returned
    when it was done, None if that is not kept."""

    handler: str
    state: Literal["done", "retrying", "dead", "cancelled"]
    attempts: int
    replays: int
    due_at: datetime | None
    updated_at: datetime
    error: str | None
    result: Any = None


@dataclass(frozen=True)
class LoggedEvent:
    """An event as the database holds it. No delivery yet means: not published, or on its way through Redis."""

    id: UUID
    name: str
    key: str | None
    created_at: datetime
    payload_json: str
    headers: Mapping[str, str] | None
    deliveries: tuple[Delivery, ...]


def events(
    database: Database,
    which: Selection | None = None,
    *,
    schema: str | None = None,
    limit: int = 50,
    look_at: int = LISTED,
) -> Page[LoggedEvent]:
    """The events that fit, the latest first, at most `limit`. Raises as `status` does.

    Looks at the latest `look_at` of the ids or the time that are selected; the page says how far that went.

    >>> events("postgresql:///shop", Selection(name="send_email"), limit=1)[0].deliveries
    (Delivery(handler='send_email', state='done', ...),)
    """
    selection = which or Selection()
    with (
        opened(database, schema) as (connection, where),
        by_index(connection),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        span, asked = selection.span.conditions(EVENTS, where)
        selected, given = selection.rest.conditions(EVENTS, where)
        asked |= given | {"limit": limit, "most": look_at}
        found = Page(map(_event, cursor.execute(statement("events", where, selected, span=span), asked)))
        if len(found) < limit:
            beyond = f"SELECT e.created_at FROM {where}.event AS e WHERE {span} ORDER BY e.id DESC"
            row = cursor.execute(f"{beyond} OFFSET %(most)s LIMIT 1".encode(), asked).fetchone()
            found.reached = None if row is None else row["created_at"]
        return found


def _event(row: Mapping[str, Any]) -> LoggedEvent:
    return LoggedEvent(**{**row, "deliveries": tuple(_delivery(found) for found in row["deliveries"])})


def _delivery(found: Mapping[str, Any]) -> Delivery:
    due = found["due_at"]
    return Delivery(
        **{
            **found,
            "due_at": datetime.fromisoformat(due) if due else None,
            "updated_at": datetime.fromisoformat(found["updated_at"]),
        }
    )
