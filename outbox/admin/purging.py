"""Purging: the content of somebody's events is erased everywhere, and a tombstone stays.

An event's row keeps its place in the log (id, time, seq and transaction), because what a tick holds is fixed for ever;
its name, key, payload and headers are erased. Under the tombstone's name no handler gets it, also none that is yet to
come, and no replay finds it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row, tuple_row

from outbox.admin import audit
from outbox.admin.handlers import SETTLE
from outbox.admin.quotes import quotes
from outbox.admin.selection import EVENTS, Columns, Selection
from outbox.admin.statement import statement
from outbox.database import Database, opened
from outbox.names import check_schema, lock_id

if TYPE_CHECKING:
    import redis

    from outbox.settings import Settings

BATCH = 500
"""Events purged in one transaction at the most."""

_LETTERS = Columns("l.event_id", "l.name", "l.key", "l.event_created_at", "l.payload")


@dataclass(frozen=True)
class Purged:
    """What held the content: events (edited copies among them), dead letters, events not due yet, and stream entries.
    After a dry run: what would be erased; entries are not counted then."""

    events: int
    letters: int
    scheduled: int
    entries: int = 0


def purge(
    settings: Settings,
    which: Selection,
    *,
    reason: str,
    dry_run: bool = False,
    actor: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Purged:
    """Erase the content of the events that fit, of their dead letters, copies, errors and stream entries.

    `which` takes ids, a name, a key, payload fields and when the events were added. What has not run is cancelled, what
    runs is cut off from its outcome. Interrupted, it is simply asked again: letters, copies and entries of what was
    purged within a day are looked for, too. The audit row says who, when and why, and neither key nor value. The
    filters and edits of older rows are blanked where they name these events or quote what is erased, by four characters
    or more.

    Not reached: follow-up events that do not fit the selection, reasons in the audit table, what handlers wrote
    elsewhere, backups, replicas, and the old versions of rows until PostgreSQL's next VACUUM.

    Raises `ValueError` for a selection that is by handler or error, or selects everything, and without a reason;
    `redis.RedisError` when Redis is away (nothing is changed then), and otherwise as `status` does.

    >>> purge(Settings(), Selection(key="customer-7"), reason="request 2026-113")
    Purged(events=12, letters=1, scheduled=0, entries=2)
    """
    check(which)
    if not reason.strip():
        raise ValueError("say why: what is purged cannot be brought back")
    from outbox.admin import streams

    with (
        opened(settings, None) as (connection, where),
        connection.cursor(row_factory=dict_row) as cursor,
        streams.opened(settings) as client,
    ):
        run = _Purge(cursor, where, which)
        found = run.count()
        if dry_run:
            return found
        with connection.transaction():
            run.note(found, actor, reason)
        events = letters = 0

        def erase(rows: list[Mapping[str, Any]]) -> int:
            with connection.transaction():
                run.erase(rows)
            progress(min(events + len(rows), found.events), found.events)
            return len(rows)

        while rows := run.next_events():
            events += erase(rows)
        # Letters of events that are gone name copies, and copies have letters and copies of their own.
        more = True
        while more:
            with connection.transaction():
                taken = run.letters()
            copies = run.next_copies()
            events += erase(copies)
            letters += taken
            more = bool(taken or copies)
        with connection.transaction():
            scheduled = run.unschedule()
            run.blank()
        entries = run.entries(client, settings.prefix)
        led = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND (classid::bigint << 32 | objid::bigint) = %s"
        if connection.execute(led.encode(), [lock_id("relay", where)]).fetchone() is not None:
            # What it had read before may have been appended after the first look.
            sleep(SETTLE)
            entries += run.entries(client, settings.prefix)
    return Purged(events, letters, scheduled, entries)


def check(which: Selection) -> None:
    """Raise `ValueError` unless a selection says whose content is meant, by what the content is."""
    if which.handler is not None or which.error is not None or which.group is not None:
        raise ValueError("what is purged is selected by event, not by handler or error")
    if which.ids is None and which.key is None and not which.payload:
        raise ValueError("say whose content: by key, payload field or ids")


def purged(database: Database, ids: Iterable[UUID], *, schema: str | None = None) -> dict[UUID, datetime]:
    """Which of these events were purged, and when. Raises as `status` does.

    >>> purged("postgresql:///shop", [event.id])
    {}
    """
    with opened(database, schema) as (connection, where), connection.cursor(row_factory=tuple_row) as cursor:
        query = f"SELECT event_id, purged_at FROM {check_schema(where)}.tombstone WHERE event_id = ANY(%s::uuid[])"
        return dict(cursor.execute(query.encode(), [list(ids)]).fetchall())


class _Purge:
    """The statements of one purge."""

    def __init__(self, cursor: psycopg.Cursor[Any], schema: str, which: Selection) -> None:
        self._cursor = cursor
        self._schema = check_schema(schema)
        self._which = which
        self._place: dict[str, Any] = {"place_id": None, "place_at": None}
        audited = cursor.execute(f"SELECT id, detail FROM {self._schema}.audit".encode()).fetchall()
        self._quotes = [(row["id"], quote) for row in audited for quote in quotes(row["detail"])]
        self._quoting: set[int] = set()

    def count(self) -> Purged:
        """How much there is."""
        events = self._one("SELECT count(*) FROM {schema}.event AS e WHERE e.name <> '(purged)' AND ", EVENTS)
        letters = self._one("SELECT count(*) FROM {schema}.dead_letter AS l WHERE ", _LETTERS)
        scheduled = self._one("SELECT count(*) FROM {schema}.scheduled AS e WHERE ", EVENTS)
        return Purged(events, letters, scheduled)

    def note(self, found: Purged, actor: str | None, reason: str) -> None:
        """Say who, why and how much; not whose."""
        by = sorted(self._which.described())
        detail = {"by": by, "events": found.events, "letters": found.letters, "scheduled": found.scheduled}
        audit.note(self._cursor, self._schema, "purge", detail, actor=actor, reason=reason)

    def blank(self) -> None:
        """Let older audit rows no more say what was erased."""
        fields = [str(field) for field in self._which.payload]
        self._cursor.execute(statement("purge_audit", self._schema), {"key": self._which.key, "fields": fields})

    def next_events(self) -> list[Mapping[str, Any]]:
        """The next batch of what is selected."""
        selected, given = self._which.conditions(EVENTS, self._schema)
        asked = given | self._place | {"batch": BATCH}
        rows = self._cursor.execute(statement("choose_purged", self._schema, selected), asked).fetchall()
        if rows:
            self._place = {"place_id": rows[-1]["id"], "place_at": rows[-1]["created_at"]}
        return rows

    def next_copies(self) -> list[Mapping[str, Any]]:
        """The edited copies of what was purged, and their copies."""
        return self._cursor.execute(statement("copies", self._schema)).fetchall()

    def erase(self, rows: list[Mapping[str, Any]]) -> None:
        """Erase these events."""
        keys = {"ids": [row["id"] for row in rows], "ats": [row["created_at"] for row in rows]}
        self._unquote("event AS e", "e.key, e.payload", "e.id = ANY(%(ids)s) AND e.created_at = ANY(%(ats)s)", keys)
        self._cursor.execute(statement("purge", self._schema), keys)

    def letters(self) -> int:
        """Erase the dead letters of what was erased, which can get no more of them, and of events that are gone."""
        selected, given = self._which.conditions(_LETTERS, self._schema)
        self._unquote("dead_letter AS l", "l.key, l.payload", selected, given)
        row = self._cursor.execute(statement("purge_letters", self._schema, selected), given).fetchone()
        assert row is not None
        return int(row["count"])

    def unschedule(self) -> int:
        """Take back what is not due yet."""
        selected, given = self._which.conditions(EVENTS, self._schema)
        self._unquote("scheduled AS e", "e.key, e.payload", selected, given)
        query = f"DELETE FROM {self._schema}.scheduled AS e WHERE {selected}"
        return self._cursor.execute(query.encode(), given).rowcount

    def entries(self, client: redis.Redis, prefix: str) -> int:
        """Erase the stream entries of what was purged within a day."""
        from outbox.admin import removal

        rows = self._cursor.execute(
            f"SELECT t.event_id::text AS id, t.name FROM {self._schema}.tombstone AS t"
            " WHERE t.purged_at >= clock_timestamp() - interval '1 day'".encode()
        ).fetchall()
        names = {row["name"] for row in rows}
        handlers = self._cursor.execute(
            f"SELECT name, event_name FROM {self._schema}.handler WHERE event_name = ANY(%s)".encode(), [list(names)]
        ).fetchall()
        keys = removal.stream_keys(prefix, names, ((row["event_name"], row["name"]) for row in handlers))
        return removal.remove_entries(client, keys, {row["id"].encode() for row in rows})

    def _unquote(self, table: str, content: str, selected: str, given: Mapping[str, Any]) -> None:
        """Blank the audit rows that quote contents which are about to be erased."""
        open_ = [(id, quote) for id, quote in self._quotes if id not in self._quoting]
        if not open_:
            return
        audits, texts = zip(*open_, strict=True)
        rows = self._cursor.execute(
            statement("purge_quotes", self._schema, selected, table=table, content=content),
            {**given, "audits": list(audits), "quotes": list(texts)},
        ).fetchall()
        self._quoting |= {row["id"] for row in rows}

    def _one(self, query: str, columns: Columns) -> int:
        selected, given = self._which.conditions(columns, self._schema)
        row = self._cursor.execute((query.replace("{schema}", self._schema) + selected).encode(), given).fetchone()
        assert row is not None
        return int(row["count"])
