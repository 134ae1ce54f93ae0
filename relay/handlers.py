"""The handlers as the relay knows them: who is attached to its event's main stream and who is fed on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
import structlog

from outbox.position import END, ORIGIN, Position

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Handler:
    """A row of the table `handler`. `done` and `fed` are None until it is admitted; `fed` also while it is attached."""

    name: str
    event_name: str
    attached: bool
    done: Position | None
    fed: Position | None
    chosen: bool = False
    """Whether it said where to begin."""


_COLUMNS = "name, event_name, attached, done_tick, done_seq, fed_tick, fed_seq, start_at IS NOT NULL"


def _handler(row: tuple[Any, ...]) -> Handler:
    name, event_name, attached, done_tick, done_seq, fed_tick, fed_seq, chosen = row
    return Handler(
        name,
        event_name,
        attached,
        None if done_tick is None else Position(done_tick, done_seq),
        None if fed_tick is None else Position(fed_tick, fed_seq),
        chosen,
    )


def beginning(*, first: bool, before: int | None, published: Position) -> Position:
    """Where a new handler begins: the first of its event name with all that is retained, unless it said otherwise.

    Others begin behind `before`, the last tick that was taken before the moment they chose, or else registered: what
    was added since is for them too, even if the main feed, which is at `published`, has it behind itself already.
    """
    if first or before is None:
        return ORIGIN
    return min(published, Position(before, END))


class Handlers:
    """Reads and changes who is attached. Only the leader's main thread changes it."""

    def __init__(self, connection: psycopg.Connection, schema: str) -> None:
        self._connection = connection
        self._table = f"{schema}.handler"
        self._schema = schema
        self.all: dict[str, Handler] = {}
        self.attached_names: set[str] = set()

    @property
    def detached(self) -> list[Handler]:
        """Those a catch-up feed serves."""
        return [h for h in self.all.values() if not h.attached and h.fed is not None]

    def of(self, event_name: str) -> list[Handler]:
        return [h for h in self.all.values() if h.event_name == event_name]

    def refresh(self, published: Position) -> None:
        """Read the table again and admit who is new, given the main feed's position.

        All that are first met together are the first of their event's handlers, and begin with the retained events.
        """
        rows = self._connection.execute(f"SELECT {_COLUMNS} FROM {self._table} ORDER BY registered_at".encode())
        self.all = {handler.name: handler for handler in map(_handler, rows)}
        known = {h.event_name for h in self.all.values() if h.done is not None}
        for handler in [h for h in self.all.values() if not h.attached and h.fed is None]:
            first = handler.event_name not in known and not handler.chosen
            before = None if first else self._last_before(handler)
            self._admit(handler, beginning(first=first, before=before, published=published))
        self._index()

    def _last_before(self, handler: Handler) -> int | None:
        """The last tick that was taken before the moment from which on a handler wants events."""
        row = self._connection.execute(
            f"SELECT t.id FROM {self._schema}.tick AS t, {self._table} AS h"
            " WHERE h.name = %s AND t.created_at <= least(h.start_at, h.registered_at)"
            " ORDER BY t.id DESC LIMIT 1".encode(),
            [handler.name],
        ).fetchone()
        return None if row is None else row[0]

    def _admit(self, handler: Handler, start: Position) -> None:
        done = handler.done or start
        row = self._connection.execute(
            f"UPDATE {self._table} SET done_tick = %s, done_seq = %s, fed_tick = %s, fed_seq = %s"
            f" WHERE name = %s RETURNING {_COLUMNS}".encode(),
            [*done, *done, handler.name],
        ).fetchone()
        assert row is not None
        self.all[handler.name] = _handler(row)
        log.info("handler.admitted", handler=handler.name, event_name=handler.event_name, start=str(done))

    def attach(self, handler: Handler) -> None:
        """The main stream serves it from now on."""
        self._replace(
            f"UPDATE {self._table} SET attached = true, fed_tick = NULL, fed_seq = NULL WHERE name = %s", [handler.name]
        )

    def feed_moved(self, handler: Handler, fed: Position) -> None:
        """Its catch-up stream is complete up to here. Without waiting for the disk: the stream says how far it is."""
        self._replace(
            "WITH unflushed AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))"
            f" UPDATE {self._table} SET fed_tick = %s, fed_seq = %s FROM unflushed WHERE name = %s",
            [*fed, handler.name],
        )

    def detach(self, event_name: str, last: Position) -> None:
        """The main stream lost data and ends at `last`: its handlers are fed from where all is done."""
        with self._connection.transaction():
            self._connection.execute(
                f"INSERT INTO {self._schema}.stream (name, tick, seq) VALUES (%s, %s, %s)"
                " ON CONFLICT (name) DO UPDATE SET tick = excluded.tick, seq = excluded.seq".encode(),
                [event_name, *last],
            )
            self._replace(
                f"UPDATE {self._table} SET attached = false, fed_tick = done_tick, fed_seq = done_seq"
                " WHERE event_name = %s AND attached",
                [event_name],
            )

    def detach_behind(self, handler: Handler, fed: Position) -> None:
        """The main stream is trimmed past it: it is fed from PostgreSQL, behind what it was given last."""
        self._replace(
            f"UPDATE {self._table} SET attached = false, fed_tick = %s, fed_seq = %s WHERE name = %s",
            [*fed, handler.name],
        )

    def restart_feed(self, handler: Handler) -> None:
        """Its catch-up stream lost data: it is fed again from where all is done."""
        self._replace(
            f"UPDATE {self._table} SET fed_tick = done_tick, fed_seq = done_seq WHERE name = %s", [handler.name]
        )

    def _replace(self, statement: str, parameters: list[Any]) -> None:
        for row in self._connection.execute(f"{statement} RETURNING {_COLUMNS}".encode(), parameters):
            handler = _handler(row)
            self.all[handler.name] = handler
        self._index()

    def _index(self) -> None:
        self.attached_names = {h.event_name for h in self.all.values() if h.attached}
