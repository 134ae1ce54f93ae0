"""Cancelling what has not run: an event's delivery to all of its handlers or to one, or what is not due yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from psycopg.rows import tuple_row

from outbox.admin import audit
from outbox.admin.statement import statement
from outbox.database import Database, opened
from outbox.errors import UnknownError
from outbox.names import check_schema

WAIT = "5s"
"""How long a first attempt that is about to commit is waited for."""


@dataclass(frozen=True)
class Cancellation:
    """What became of a request to cancel an event: the handlers that will not run it, and those where it was too late,
    with where it stands there (`done`, `dead`, `cancelled` before, or `running`). `unannounced` are those of the first
    that no worker has announced for such events: one to come, or a slip. `scheduled` says that it was not due yet: then
    it is gone, and no handler gets it."""

    event_id: UUID
    event_name: str
    cancelled: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    scheduled: bool = False
    unannounced: tuple[str, ...] = ()


def cancel(
    database: Database,
    event_id: UUID,
    *,
    handler: str | None = None,
    schema: str | None = None,
    dry_run: bool = False,
    reason: str | None = None,
    actor: str | None = None,
) -> Cancellation:
    """Keep an event from being run by the handlers that have not: all of its name, or one, known already or not.

    An entry that a worker has fetched already may still run: a transactional handler's effects are rolled back then,
    and what a plain handler did counts as done. Pause the handler first, and nothing is fetched. Raises `UnknownError`
    for an id that no event has, and otherwise as `status` does.

    >>> cancel("postgresql:///shop", event.id, reason="ordered twice").cancelled
    ('bill', 'send_email')
    """
    who = actor or audit.current_actor()
    with (
        opened(database, schema) as (connection, where),
        connection.transaction(),
        connection.cursor(row_factory=tuple_row) as cursor,
    ):
        cursor.execute("SELECT set_config('lock_timeout', %s, true)", [WAIT])
        rows = cursor.execute(statement("standing", where), {"id": event_id, "handler": handler}).fetchall()
        if not rows:
            done = _unschedule(cursor, where, event_id, dry_run)
        else:
            states = {row[2]: row[3] for row in rows if row[2] is not None}
            chosen = [name for name, state in states.items() if state in ("waiting", "retrying")]
            if chosen and not dry_run:
                asked = {
                    "id": event_id,
                    "created_at": rows[0][1],
                    "handlers": chosen,
                    "error": f"cancelled by {who}{f': {reason}' if reason else ''}",
                }
                now = {row[0] for row in cursor.execute(statement("cancel", where), asked)}
                # In between it began to run, or ended.
                states |= dict.fromkeys(set(chosen) - now, "running")
                chosen = [name for name in chosen if name in now]
            left = {name: state for name, state in states.items() if name not in chosen}
            unannounced = tuple(row[2] for row in rows if row[2] in chosen and row[4])
            done = Cancellation(event_id, rows[0][0], tuple(chosen), left, unannounced=unannounced)
        if not dry_run and (done.scheduled or done.cancelled):
            detail = {"event": str(event_id), "handlers": list(done.cancelled), "scheduled": done.scheduled}
            audit.note(cursor, where, "cancel", detail, actor=who, reason=reason)
    return done


def _unschedule(cursor: audit.Cursor, schema: str, event_id: UUID, dry_run: bool) -> Cancellation:
    table = f"{check_schema(schema)}.scheduled"
    row = cursor.execute(f"SELECT name FROM {table} WHERE id = %s".encode(), [event_id]).fetchone()
    if row is not None and not dry_run:
        row = cursor.execute(f"DELETE FROM {table} WHERE id = %s RETURNING name".encode(), [event_id]).fetchone()
    if row is None:
        raise UnknownError(f"no event has the id {event_id}; `outbox events` lists those that are retained")
    return Cancellation(event_id, row[0], scheduled=True)
