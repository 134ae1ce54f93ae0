"""Running dead letters again: each goes back among the deliveries that are due, once, for its own handler only."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from outbox.admin import audit
from outbox.admin.selection import LETTERS, Selection
from outbox.admin.statement import statement
from outbox.database import Database, opened

BATCH = 500
"""Dead letters put back in one transaction at the most."""


@dataclass(frozen=True)
class Replayed:
    """What a replay did. `asked` dead letters fitted when it began; `count` were put back by it."""

    asked: int
    count: int

    @property
    def complete(self) -> bool:
        """Whether all were put back by this replay; otherwise another one took some, or it was stopped."""
        return self.count == self.asked


def replay(
    database: Database,
    which: Selection,
    *,
    schema: str | None = None,
    limit: int | None = None,
    rate: float | None = None,
    reason: str | None = None,
    actor: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Replayed:
    """Put the dead letters that fit back, the oldest first; their handlers run them again with all their attempts.

    At most `limit` of them and `rate` a second. Letters that die while this runs are not touched. Several replays at
    once share the letters, none is put back twice. One transaction per batch: an interrupted replay has put back what
    it reported to `progress` (done, total), and can simply be repeated. An audit row says who (`actor`, by default
    user@host), what and why (`reason`); it is written with the first batch.

    Raises `ValueError` for a rate or limit that is not positive, and otherwise as `status` does.

    >>> replay("postgresql:///shop", Selection(handler="send_email"), reason="mail server is back")
    Replayed(asked=12, count=12)
    """
    if (limit is not None and limit < 1) or (rate is not None and rate <= 0):
        raise ValueError("limit and rate must be positive")
    with opened(database, schema) as (connection, where), connection.cursor(row_factory=tuple_row) as cursor:
        selected, given = which.conditions(LETTERS, where)
        row = cursor.execute(statement("count_letters", where, selected), given).fetchone()
        assert row is not None
        total = row[0] if limit is None else min(row[0], limit)
        asked: dict[str, Any] = {**given, "began": row[1], **_after(None)}
        detail = {"filter": which.described(), "count": total, "limit": limit, "rate": rate}
        done = 0
        began = clock()
        while done < total:
            asked["batch"] = batch_size(total - done, rate)
            with connection.transaction():
                if done == 0:
                    audit.note(cursor, where, "replay", detail, actor=actor, reason=reason)
                found = cursor.execute(statement("replay", where, selected), asked).fetchall()
                if not found and done == 0:
                    raise psycopg.Rollback()
            if not found:
                break
            asked |= _after(found[-1])
            done += len(found)
            progress(done, total)
            if rate is not None and done < total:
                sleep(pause(done, rate, clock() - began))
    return Replayed(asked=total, count=done)


def batch_size(left: int, rate: float | None) -> int:
    """How many to put back next: about a tenth of a second's worth at `rate`."""
    return max(1, min(left, BATCH, BATCH if rate is None else int(rate / 10)))


def pause(done: int, rate: float, elapsed: float) -> float:
    """Seconds to wait so that `done` letters have taken as long as `rate` a second allows."""
    return max(0.0, done / rate - elapsed)


def _after(last: tuple[Any, ...] | None) -> Mapping[str, Any]:
    event_id, handler, died_at = last or (None, None, None)
    return {"after_died_at": died_at, "after_event_id": event_id, "after_handler": handler}
