"""Dead letters: deliveries that failed for good and that nobody has put back yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import class_row, tuple_row

from outbox.admin.statement import statement
from outbox.database import Database, opened


@dataclass(frozen=True)
class Filter:
    """Which dead letters: those that fit everything that is given. Times are when they died, with a time zone; `since`
    is included and `until` is not.

    >>> Filter(handler="send_email", since=datetime.now(UTC) - timedelta(hours=2))
    """

    ids: tuple[UUID, ...] | None = None
    handler: str | None = None
    event: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing is given, so that every dead letter fits."""
        return self == Filter()

    def parameters(self) -> dict[str, Any]:
        """What the statements ask for."""
        return {**asdict(self), "ids": None if self.ids is None else list(self.ids)}

    def described(self) -> dict[str, Any]:
        """What was given, as JSON values: for the audit row."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if self.ids is not None:
            given["ids"] = [str(id) for id in self.ids]
        return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in given.items()}


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
    which: Filter | None = None,
    *,
    schema: str | None = None,
    limit: int = 100,
    oldest_first: bool = False,
) -> list[DeadLetter]:
    """The dead letters that fit, the latest first unless `oldest_first`, at most `limit`. Raises as `status` does.

    >>> [letter.error for letter in dead_letters("postgresql:///shop", Filter(handler="send_email"))]
    ['MailboxFull: ...']
    """
    with (
        opened(database, schema) as (connection, where),
        connection.cursor(row_factory=class_row(DeadLetter)) as cursor,
    ):
        asked = {**(which or Filter()).parameters(), "limit": limit, "oldest_first": oldest_first}
        return cursor.execute(statement("letters", where), asked).fetchall()


def count_dead_letters(database: Database, which: Filter | None = None, *, schema: str | None = None) -> int:
    """How many dead letters fit. Raises as `status` does."""
    with opened(database, schema) as (connection, where), connection.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(statement("count_letters", where), (which or Filter()).parameters()).fetchone()
        return int(row[0]) if row else 0
