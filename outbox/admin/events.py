"""The log of events, each with what came of it at its handlers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from psycopg.rows import dict_row

from outbox.admin.statement import statement
from outbox.database import Database, opened


@dataclass(frozen=True)
class Delivery:
    """What came of an event at one handler. `due_at` is set while it is retrying."""

    handler: str
    state: Literal["done", "retrying", "dead"]
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
    *,
    schema: str | None = None,
    ids: Sequence[UUID] | None = None,
    name: str | None = None,
    key: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = 50,
) -> list[LoggedEvent]:
    """The events that fit everything given, the latest first, at most `limit`; `until` is not included.

    A rare name or key without `since` reads the whole retained log. Raises as `status` does.

    >>> events("postgresql:///shop", name="send_email", limit=1)[0].deliveries
    (Delivery(handler='send_email', state='done', ...),)
    """
    asked = {
        "ids": None if ids is None else list(ids),
        "name": name,
        "key": key,
        "since": since,
        "until": until,
        "limit": limit,
    }
    with opened(database, schema) as (connection, where), connection.cursor(row_factory=dict_row) as cursor:
        return [_event(row) for row in cursor.execute(statement("events", where), asked)]


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
