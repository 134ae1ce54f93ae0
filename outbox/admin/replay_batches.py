"""The statements of one replay: counting and choosing what is meant, and putting a batch of it back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

import psycopg
from uuid_utils.compat import uuid7

from outbox.admin.edit import Edit
from outbox.admin.selection import LETTERS, Columns, Selection
from outbox.admin.statement import statement
from outbox.errors import PayloadError, UnknownError
from outbox.names import check_schema

IN_ORDER = b"SELECT set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true)"
"""Has the log read by its primary key until the transaction ends."""

COPY_OF = "outbox-copy-of"
"""The header of an edited copy that holds the id of the event it is a copy of."""


class Outcome(StrEnum):
    """What became of the deliveries that are to run again."""

    DEAD = "dead"
    DONE = "done"
    CANCELLED = "cancelled"
    MISSED = "missed"
    """Nothing: the handler began after the event."""
    ANY = "any"
    """Whatever it was; what is still to run is not meant."""


_STATES = {
    Outcome.DEAD: ["dead"],
    Outcome.DONE: ["done"],
    Outcome.CANCELLED: ["cancelled"],
    Outcome.MISSED: [],
    Outcome.ANY: ["dead", "done", "cancelled"],
}
DELIVERIES_OF_HANDLERS = Columns("e.id", "e.name", "e.key", "e.created_at", "e.payload", "m.name", "d.error")
"""The columns of choose_deliveries.sql, where a handler need have no delivery yet."""


class Counted(NamedTuple):
    """How many deliveries fitted at a moment; beside them, dead letters by handlers that nobody has."""

    fitting: int
    at: datetime
    orphans: dict[str, int]


class Batches:
    """The statements of one replay; the caller holds the transactions."""

    def __init__(
        self,
        cursor: psycopg.Cursor[Mapping[str, Any]],
        schema: str,
        which: Selection,
        outcome: Outcome,
        edit: Edit | None,
        by: str = "",
    ) -> None:
        self._cursor = cursor
        self._schema = check_schema(schema)
        self._which = which
        self._outcome = outcome
        self._edit = edit
        self._by = by
        if outcome is not Outcome.DEAD and which.handler is not None:
            query = f"SELECT FROM {self._schema}.handler WHERE name = %s"
            if cursor.execute(query.encode(), [which.handler]).fetchone() is None:
                raise UnknownError(f"there is no handler {which.handler!r}; `outbox status` shows those that there are")

    def resume(self, name: str) -> dict[str, Any] | None:
        """The row of this replay if it has begun, held until the transaction ends; its times are then ours."""
        query = f"SELECT * FROM {self._schema}.replay WHERE known_as = %s FOR UPDATE"
        row = self._cursor.execute(query.encode(), [name]).fetchone()
        if row is None:
            return None
        self._which = replace(self._which, since=row["since"], until=row["until"])
        return dict(row)

    def begin(self, name: str, actor: str, limit: int | None, counted: Counted | None) -> dict[str, Any] | None:
        """Begin, unless nothing fits."""
        count, now, _ = counted or self.count()
        if not count:
            return None
        self._cursor.execute(
            f"INSERT INTO {self._schema}.replay (known_as, actor, began_at, since, until, asked)"
            " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING".encode(),
            [name, actor, now, self._which.since, self._which.until, count if limit is None else min(count, limit)],
        )
        return self.resume(name)

    def forget(self, name: str, *, begun_within: timedelta = timedelta()) -> None:
        """It has ended, or is to begin anew; `begun_within` keeps one that is younger."""
        query = (
            f"DELETE FROM {self._schema}.replay WHERE known_as = %s AND began_at <= clock_timestamp() - %s::interval"
        )
        self._cursor.execute(query.encode(), [name, begun_within])

    def count(self) -> Counted:
        """How many fit now."""
        row = self._cursor.execute("SELECT clock_timestamp() AS now").fetchone()
        assert row is not None
        now = row["now"]
        if self._outcome is Outcome.DEAD:
            selected, asked = self._which.conditions(LETTERS, self._schema)
            query = statement("count_candidates", self._schema, selected)
            letters = self._cursor.execute(query, asked | {"began": now}).fetchall()
            orphans = {each["handler"]: each["count"] for each in letters if not each["known"]}
            return Counted(sum(each["count"] for each in letters if each["known"]), now, orphans)
        selected, asked = self._which.conditions(DELIVERIES_OF_HANDLERS, self._schema)
        chosen = statement("choose_deliveries", self._schema, selected).decode()
        query = f"SELECT count(*) FROM ({chosen}) AS chosen".encode()
        row = self._cursor.execute(query, asked | self._parameters({"began_at": now}, None)).fetchone()
        assert row is not None
        return Counted(row["count"], now, {})

    def choose(self, state: Mapping[str, Any], batch: int) -> list[Mapping[str, Any]]:
        """The next deliveries behind the place that is reached."""
        letters = self._outcome is Outcome.DEAD
        selected, asked = self._which.conditions(LETTERS if letters else DELIVERIES_OF_HANDLERS, self._schema)
        query = statement("choose_letters" if letters else "choose_deliveries", self._schema, selected)
        if not letters:
            # Without statistics of a young partition the planner would read and sort all that is left, for each batch.
            self._cursor.execute(IN_ORDER)
        return self._cursor.execute(query, asked | self._parameters(state, batch)).fetchall()

    def put_back(self, state: Mapping[str, Any], batch: int) -> int | None:
        """Put the next batch back and move the place behind it. How many were; None when there is nothing left."""
        rows = self.choose(state, batch)
        if not rows:
            return None
        count = self._run_again(rows) if self._edit is None else self._run_copies(rows)
        last = rows[-1]
        self._cursor.execute(
            f"UPDATE {self._schema}.replay SET count = count + %s, place_at = %s, place_id = %s, place_handler = %s"
            " WHERE known_as = %s".encode(),
            [count, last["at"], last["event_id"], last["handler"], state["known_as"]],
        )
        return count

    def tally(self, count: int) -> None:
        """Add to what was ever put back, for the metric: last in its transaction, as all replays write this row."""
        self._cursor.execute(
            f"INSERT INTO {self._schema}.replay AS r (known_as, actor, asked, count) VALUES ('total', '', 0, %s)"
            " ON CONFLICT (known_as) DO UPDATE SET count = r.count + excluded.count".encode(),
            [count],
        )

    def _run_again(self, rows: Sequence[Mapping[str, Any]]) -> int:
        keys = _keys(rows) | {"states": _STATES[self._outcome], "by": self._by}
        return self._cursor.execute(statement("put_back", self._schema), keys).rowcount

    def _run_copies(self, rows: Sequence[Mapping[str, Any]]) -> int:
        copies = {
            "copies": [uuid7() for _ in rows],
            "keys": [row["key"] for row in rows],
            "payloads": [edited(row, self._edit) for row in rows],
            "headers": [
                json.dumps({**json.loads(row["headers"] or "{}"), COPY_OF: str(row["event_id"])}) for row in rows
            ],
            "by": self._by,
        }
        return self._cursor.execute(statement("copy", self._schema), _keys(rows) | copies).rowcount

    def _parameters(self, state: Mapping[str, Any], batch: int | None) -> dict[str, Any]:
        return {
            "began": state["began_at"],
            "place_at": state.get("place_at"),
            "place_id": state.get("place_id"),
            "place_handler": state.get("place_handler"),
            "handler": self._which.handler,
            "states": _STATES[self._outcome],
            "missed": self._outcome in (Outcome.MISSED, Outcome.ANY),
            "batch": batch,
        }


def _keys(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "ids": [row["event_id"] for row in rows],
        "handlers": [row["handler"] for row in rows],
        "ats": [row["event_created_at"] for row in rows],
    }


def edited(row: Mapping[str, Any], edit: Edit | None) -> str | None:
    """The edited payload of a row; None without an edit. Raises `PayloadError` if it cannot be edited so."""
    try:
        return None if edit is None else edit.apply(row["payload_json"])
    except (PayloadError, ValueError) as error:
        raise PayloadError(f"the payload of event {row['event_id']} cannot be edited so: {error}") from None
