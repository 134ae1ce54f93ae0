"""Discarding dead letters: what failed for good and is not to run again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from psycopg.rows import tuple_row

from outbox.admin import audit
from outbox.admin.selection import LETTERS, Selection
from outbox.admin.statement import statement
from outbox.database import Database, opened

BATCH = 1000
"""Dead letters that are taken away in one transaction at the most."""


@dataclass(frozen=True)
class Discarded:
    """`asked` dead letters fitted; `count` were taken away. Another command holds the others, or took them first."""

    asked: int
    count: int


def discard(
    database: Database,
    which: Selection,
    *,
    reason: str,
    schema: str | None = None,
    limit: int | None = None,
    counted: int | None = None,
    actor: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Discarded:
    """Take the dead letters that fit away for good, the oldest first; their deliveries stay dead.

    At most `limit` of them; letters that die while this runs are not touched. With `counted`, what `count_dead_letters`
    said of the same, they are not counted again, and no more than that are taken. The audit row has who, when, `reason`
    and what was selected. Interrupted, it has taken away what it reported to `progress`; asked again it goes on. Raises
    `ValueError` without a reason or for a limit that is not positive, and otherwise as `status` does.

    >>> discard("postgresql:///shop", Selection(handler="send_email", group="5f0c1e7a2b"), reason="addresses of a test")
    Discarded(asked=12, count=12)
    """
    if not reason.strip():
        raise ValueError("say why: what is discarded cannot be looked up again")
    if limit is not None and limit < 1:
        raise ValueError("limit must be positive")
    with opened(database, schema) as (connection, where), connection.cursor(row_factory=tuple_row) as cursor:
        selected, given = which.conditions(LETTERS, where)
        if counted is None:
            row = cursor.execute(statement("count_letters", where, selected), given).fetchone()
        else:
            row = cursor.execute("SELECT %s, clock_timestamp()", [counted]).fetchone()
        assert row is not None
        asked, count = row[0] if limit is None else min(row[0], limit), 0
        given |= {"began": row[1]}
        while count < asked:
            with connection.transaction():
                if not count:
                    detail = {"filter": which.described(), "count": asked, "limit": limit}
                    audit.note(cursor, where, "discard", detail, actor=actor, reason=reason)
                batch = {"batch": min(BATCH, asked - count)}
                gone = cursor.execute(statement("discard", where, selected), given | batch).rowcount
            if not gone:
                break
            count += gone
            progress(count, asked)
    return Discarded(asked, count)
