"""Dead letters: deliveries that failed for good and that nobody has put back yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.rows import class_row, tuple_row

from outbox.admin.selection import LETTERS, Selection, group_of
from outbox.admin.state import LOOK_AT
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
) -> list[DeadLetter]:
    """The dead letters that fit, the latest first unless `oldest_first`, at most `limit`. Raises as `status` does.

    >>> [letter.error for letter in dead_letters("postgresql:///shop", Selection(handler="send_email"))]
    ['MailboxFull: ...']
    """
    with (
        opened(database, schema) as (connection, where),
        connection.cursor(row_factory=class_row(DeadLetter)) as cursor,
    ):
        selected, asked = (which or Selection()).conditions(LETTERS, where)
        asked |= {"limit": limit, "oldest_first": oldest_first}
        return cursor.execute(statement("letters", where, selected), asked).fetchall()


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
    look_at: int = LOOK_AT,
) -> list[ErrorGroup]:
    """The dead letters that fit in groups by error, the largest first, at most `limit` groups.

    The latest `look_at` letters that fit are counted. Raises as `status` does.

    >>> [(group.error, group.count) for group in error_groups("postgresql:///shop", Selection(handler="send_email"))]
    [('MailboxFull: user 7 has 1,024 letters', 12)]
    """
    with (
        opened(database, schema) as (connection, where),
        connection.cursor(row_factory=class_row(ErrorGroup)) as cursor,
    ):
        selected, asked = (which or Selection()).conditions(LETTERS, where)
        asked |= {"limit": limit, "most": look_at}
        return cursor.execute(statement("error_groups", where, selected, group_of("l.error")), asked).fetchall()
