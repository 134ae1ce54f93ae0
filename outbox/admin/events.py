"""The log of events, each with what came of it at its handlers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from psycopg.rows import dict_row

from outbox.admin.selection import EVENTS, Selection
from outbox.admin.statement import statement
from outbox.database import Database, opened


@dataclass(frozen=True)
class Delivery:
    """What came of an event at one handler. `due_at` is set while it is retrying."""

    handler: str
    state: Literal["done", "retrying", "dead", "cancelled"]
    attempts: int
    replays: int
    due_at: datetime | None
    updated_at: datetime
    error: str | None


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
) -> list[LoggedEvent]:
    """The events that fit, the latest first, at most `limit`. Raises as `status` does.

    A rare name or key without `since` reads the whole retained log.

    >>> events("postgresql:///shop", Selection(name="send_email"), limit=1)[0].deliveries
    (Delivery(handler='send_email', state='done', ...),)
    """
    with opened(database, schema) as (connection, where), connection.cursor(row_factory=dict_row) as cursor:
        selected, asked = (which or Selection()).conditions(EVENTS, where)
        return [_event(row) for row in cursor.execute(statement("events", where, selected), {**asked, "limit": limit})]


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
