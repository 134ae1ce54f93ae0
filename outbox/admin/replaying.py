"""Running deliveries again: each goes back among those that are due, once, for its own handler only.

Dead letters, and on request what succeeded, what was cancelled, and what a handler never got because it began later.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

import psycopg
from psycopg.rows import class_row, dict_row
from uuid_utils.compat import uuid7

from outbox.admin import audit
from outbox.admin.edit import Edit
from outbox.admin.selection import LETTERS, Columns, Selection
from outbox.admin.statement import statement
from outbox.database import Database, opened
from outbox.errors import PayloadError, UnknownError
from outbox.names import check_schema

BATCH = 500
"""Deliveries put back in one transaction at the most."""

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
_DELIVERIES = Columns("e.id", "e.name", "e.key", "e.created_at", "e.payload", "m.name", "d.error")


@dataclass(frozen=True)
class Replayed:
    """What a replay did. `asked` deliveries fitted when it began; `count` were put back now, `total` of them in all if
    it had been interrupted before, or several shared it."""

    asked: int
    count: int
    total: int

    @property
    def complete(self) -> bool:
        """Whether all were put back; otherwise another replay took some, or they had changed."""
        return self.total >= self.asked


@dataclass(frozen=True)
class Candidate:
    """A delivery that would be put back. `payload_json` is the event's, or the edited one."""

    event_id: str
    handler: str
    event_name: str
    key: str | None
    payload_json: str


def replay(
    database: Database,
    which: Selection,
    *,
    outcome: Outcome = Outcome.DEAD,
    edit: Edit | None = None,
    schema: str | None = None,
    limit: int | None = None,
    rate: float | None = None,
    reason: str | None = None,
    actor: str | None = None,
    known_as: str | None = None,
    anew: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Replayed:
    """Put the deliveries that fit back, the oldest first; their handlers run them again with all their attempts.

    `outcome` says what became of them; for all but dead ones `which.since` and `until` are about when the event was
    added. At most `limit` of them and `rate` a second. What gets this outcome while it runs is not touched. With `edit`
    each runs as a copy of its event with an edited payload, whose header `outbox-copy-of` has the original's id.

    One transaction for each batch, at most 500: an interrupted replay has put back what it reported to `progress`
    (done, total), and goes on from there when the same one is asked for again, unless `anew`. The same is what selects
    the same, or what was called the same in `known_as`. Several at once share the work, none is put back twice. Audit
    rows say who (`actor`, by default user@host), what and why (`reason`).

    Raises `ValueError` for a rate or limit that is not positive, `UnknownError` for a handler that no worker announced,
    `PayloadError` for a payload that cannot be edited so, and otherwise as `status` does.

    >>> replay("postgresql:///shop", Selection(handler="send_email"), reason="mail server is back")
    Replayed(asked=12, count=12, total=12)
    """
    if (limit is not None and limit < 1) or (rate is not None and rate <= 0):
        raise ValueError("limit and rate must be positive")
    with opened(database, schema) as (connection, where), connection.cursor(row_factory=dict_row) as cursor:
        run = _Replay(cursor, where, which, outcome, edit)
        who = actor or audit.current_actor()
        detail = {**_described(which, outcome, edit), "limit": limit, "rate": rate}
        name = _fingerprint(known_as or _known_as(which, outcome, edit, limit))
        with connection.transaction():
            if anew:
                run.forget(name)
            state = run.resume(name) or run.begin(name, who, limit)
            if state is None:
                return Replayed(0, 0, 0)
            detail |= {"count": state["asked"]} | ({"from": state["count"]} if state["count"] else {})
            audit.note(cursor, where, "replay", detail, actor=who, reason=reason)
        count, earlier = 0, state["count"]
        asked, total = state["asked"], earlier
        began = clock()
        while True:
            with connection.transaction():
                state = run.resume(name)
                if state is None:
                    break
                found = run.put_back(state, batch_size(asked - state["count"], rate))
                if found is None:
                    run.forget(name)
                    break
                total = state["count"] + found
                if total >= asked:
                    run.forget(name)
            count += found
            progress(total, asked)
            if total >= asked:
                break
            if rate is not None:
                sleep(pause(count, rate, clock() - began))
    return Replayed(asked=asked, count=count, total=total)


@dataclass(frozen=True)
class Interrupted:
    """A replay that began and has not ended: who began it and when, how many fitted then, how many are put back."""

    actor: str
    began_at: datetime
    asked: int
    count: int


def interrupted(
    database: Database,
    which: Selection,
    *,
    outcome: Outcome = Outcome.DEAD,
    edit: Edit | None = None,
    schema: str | None = None,
    limit: int | None = None,
    known_as: str | None = None,
) -> Interrupted | None:
    """The replay that `replay` would go on with, if it is asked for the same; or one that runs now.

    >>> interrupted("postgresql:///shop", Selection(handler="send_email")).count
    5500
    """
    with (
        opened(database, schema) as (connection, where),
        connection.cursor(row_factory=class_row(Interrupted)) as cursor,
    ):
        name = _fingerprint(known_as or _known_as(which, outcome, edit, limit))
        query = f"SELECT actor, began_at, asked, count FROM {check_schema(where)}.replay WHERE known_as = %s"
        return cursor.execute(query.encode(), [name]).fetchone()


def candidates(
    database: Database,
    which: Selection,
    *,
    outcome: Outcome = Outcome.DEAD,
    edit: Edit | None = None,
    schema: str | None = None,
    limit: int = 10,
) -> tuple[int, list[Candidate]]:
    """What `replay` would put back now: how many, and the first of them, at most `limit`. Raises as `replay` does.

    >>> candidates("postgresql:///shop", Selection(handler="send_email"))[0]
    12
    """
    with opened(database, schema) as (connection, where), connection.cursor(row_factory=dict_row) as cursor:
        with connection.transaction():
            run = _Replay(cursor, where, which, outcome, edit)
            count, now = run.count()
            rows = run.choose({"began_at": now}, limit)
        return count, [
            Candidate(
                str(row["event_id"]), row["handler"], row["name"], row["key"], _edited(row, edit) or row["payload_json"]
            )
            for row in rows
        ]


def batch_size(left: int, rate: float | None) -> int:
    """How many to put back next: about a tenth of a second's worth at `rate`."""
    return max(1, min(left, BATCH, BATCH if rate is None else int(rate / 10)))


def pause(done: int, rate: float, elapsed: float) -> float:
    """Seconds to wait so that `done` deliveries have taken as long as `rate` a second allows."""
    return max(0.0, done / rate - elapsed)


class _Replay:
    """The statements of one replay; the caller holds the transactions."""

    def __init__(
        self,
        cursor: psycopg.Cursor[Mapping[str, Any]],
        schema: str,
        which: Selection,
        outcome: Outcome,
        edit: Edit | None,
    ) -> None:
        self._cursor = cursor
        self._schema = check_schema(schema)
        self._which = which
        self._outcome = outcome
        self._edit = edit
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

    def begin(self, name: str, actor: str, limit: int | None) -> dict[str, Any] | None:
        """Begin, unless nothing fits."""
        count, now = self.count()
        if not count:
            return None
        self._cursor.execute(
            f"INSERT INTO {self._schema}.replay (known_as, actor, began_at, since, until, asked)"
            " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING".encode(),
            [name, actor, now, self._which.since, self._which.until, count if limit is None else min(count, limit)],
        )
        return self.resume(name)

    def forget(self, name: str) -> None:
        """It has ended."""
        self._cursor.execute(f"DELETE FROM {self._schema}.replay WHERE known_as = %s".encode(), [name])

    def count(self) -> tuple[int, Any]:
        """How many fit, and the moment of asking."""
        if self._outcome is Outcome.DEAD:
            selected, asked = self._which.conditions(LETTERS, self._schema)
            query = statement("count_letters", self._schema, selected)
        else:
            selected, asked = self._which.conditions(_DELIVERIES, self._schema)
            chosen = statement("choose_deliveries", self._schema, selected).decode()
            query = f"SELECT count(*), clock_timestamp() FROM ({chosen}) AS chosen".encode()
            asked |= self._parameters({"began_at": "infinity"}, None)
        row = self._cursor.execute(query, asked).fetchone()
        assert row is not None
        return row["count"], row["clock_timestamp"]

    def choose(self, state: Mapping[str, Any], batch: int) -> list[Mapping[str, Any]]:
        """The next deliveries behind the place that is reached."""
        letters = self._outcome is Outcome.DEAD
        selected, asked = self._which.conditions(LETTERS if letters else _DELIVERIES, self._schema)
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

    def _run_again(self, rows: Sequence[Mapping[str, Any]]) -> int:
        keys = _keys(rows) | {"ats": [row["event_created_at"] for row in rows], "states": _STATES[self._outcome]}
        return self._cursor.execute(statement("put_back", self._schema), keys).rowcount

    def _run_copies(self, rows: Sequence[Mapping[str, Any]]) -> int:
        copies = {
            "copies": [uuid7() for _ in rows],
            "keys": [row["key"] for row in rows],
            "payloads": [_edited(row, self._edit) for row in rows],
            "headers": [
                json.dumps({**json.loads(row["headers"] or "{}"), COPY_OF: str(row["event_id"])}) for row in rows
            ],
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


def _described(which: Selection, outcome: Outcome, edit: Edit | None) -> dict[str, Any]:
    """What a replay is about, for the audit row."""
    found: dict[str, Any] = {"filter": which.described()}
    if outcome is not Outcome.DEAD:
        found["outcome"] = outcome.value
    if edit is not None:
        found["edit"] = list(edit.described)
    return found


def _known_as(which: Selection, outcome: Outcome, edit: Edit | None, limit: int | None) -> str:
    return json.dumps({**_described(which, outcome, edit), "limit": limit})


def _keys(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"ids": [row["event_id"] for row in rows], "handlers": [row["handler"] for row in rows]}


def _edited(row: Mapping[str, Any], edit: Edit | None) -> str | None:
    try:
        return None if edit is None else edit.apply(row["payload_json"])
    except (PayloadError, ValueError) as error:
        raise PayloadError(f"the payload of event {row['event_id']} cannot be edited so: {error}") from None


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
