"""Handlers that are no more: forgetting one, with all that is kept for it, and giving one another name."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import dict_row

from outbox.admin import audit
from outbox.admin.statement import statement
from outbox.database import opened
from outbox.errors import ConfigurationError, InUseError, UnknownError
from outbox.names import check_name, lock_id

if TYPE_CHECKING:
    from outbox.settings import Settings

SETTLE = 2.5
"""Seconds after which a leading relay has read the handlers again and feeds the old one no more."""


@dataclass(frozen=True)
class Forgotten:
    """What was kept for a handler: retries, which are cancelled now, and dead letters, which stay unless asked."""

    handler: str
    event_name: str
    retrying: int
    letters: int


def forget(
    settings: Settings,
    handler: str,
    *,
    letters: bool = False,
    dry_run: bool = False,
    reason: str | None = None,
    actor: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Forgotten:
    """Forget a handler that no code has any more: its row, its group and catch-up stream in Redis, and its retries.

    Its outcomes stay as long as its events, its dead letters until they are discarded, or with `letters` go as well.
    A worker that announces it later is a new one. One that was forgotten and has retries can be forgotten again.
    Raises `InUseError` while a worker serves it, `UnknownError` when there is none, `redis.RedisError` when Redis is
    away (nothing is changed then), and otherwise as `status` does.

    >>> forget(Settings(), "write_invoice", reason="replaced by bill")
    Forgotten(handler='write_invoice', event_name='order_placed', retrying=2, letters=0)
    """

    def change(cursor: Cursor, where: str) -> None:
        cursor.execute(statement("forget", where), {"name": handler, "letters": letters})
        audit.note(cursor, where, "forget", {"handler": handler, "letters": letters}, actor=actor, reason=reason)

    return _remove(settings, handler, change, dry_run, sleep)


def rename(
    settings: Settings,
    handler: str,
    new: str,
    *,
    dry_run: bool = False,
    reason: str | None = None,
    actor: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Forgotten:
    """Give a handler another name, with its outcomes, retries and dead letters: it goes on where it was.

    To be done when the last worker with the old name has ended and before the first with the new one starts. Reads all
    retained deliveries. Raises `PayloadError` for what is no name, `ConfigurationError` when the new one is known
    already, and otherwise as `forget` does.

    >>> rename(Settings(), "bill", "send_invoice", reason="clearer")
    """
    check_name(new, "handler name")

    def change(cursor: Cursor, where: str) -> None:
        cursor.execute(statement("rename", where), {"name": handler, "new": new})
        audit.note(cursor, where, "rename", {"handler": handler, "new": new}, actor=actor, reason=reason)

    try:
        return _remove(settings, handler, change, dry_run, sleep, new=new)
    except psycopg.errors.UniqueViolation:
        raise ConfigurationError(_taken(new)) from None


Cursor = psycopg.Cursor[dict[str, Any]]


def _remove(
    settings: Settings,
    handler: str,
    change: Callable[[Cursor, str], None],
    dry_run: bool,
    sleep: Callable[[float], None],
    new: str | None = None,
) -> Forgotten:
    from outbox.admin import removal, streams

    with (
        opened(settings, None) as (connection, where),
        connection.cursor(row_factory=dict_row) as cursor,
        streams.opened(settings) as client,
    ):
        with connection.transaction():
            cursor.execute("SELECT set_config('lock_timeout', '5s', true)")
            row = cursor.execute(statement("standing_of_handler", where), {"name": handler}).fetchone()
            if row is None and new is None:
                row = cursor.execute(statement("standing_of_orphan", where), {"name": handler}).fetchone()
            if row is None:
                raise UnknownError(f"there is no handler {handler!r}; `outbox status` shows those that there are")
            if row["served"]:
                raise InUseError(
                    f"a worker serves handler {handler!r}: stop it, or deploy it without the handler, first"
                )
            if new is not None:
                query = "SELECT FROM {schema}.handler WHERE name = %s".replace("{schema}", where)
                if cursor.execute(query.encode(), [new]).fetchone() is not None:
                    raise ConfigurationError(_taken(new))
            found = Forgotten(handler, row["event_name"], row["retrying"], row["letters"])
            if dry_run:
                return found
            keep_main = row["siblings"] or new is not None
            change(cursor, where)
            # Before the COMMIT: whichever of the two fails, the handler is known still, and this can be done again.
            removal.remove_handler(client, settings.prefix, found.event_name, handler, keep_main=keep_main)
        led = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND (classid::bigint << 32 | objid::bigint) = %s"
        if connection.execute(led.encode(), [lock_id("relay", where)]).fetchone() is not None:
            # It may have put something there until it read the handlers again.
            sleep(SETTLE)
            removal.remove_handler(client, settings.prefix, found.event_name, handler, keep_main=keep_main)
    return found


def _taken(name: str) -> str:
    return (
        f"handler {name!r} is known already, and has outcomes of its own: forget the one that is not wanted, and let"
        " the other one catch up with `outbox replay --outcome missed`"
    )
