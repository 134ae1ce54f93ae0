"""Running deliveries again: each goes back among those that are due, once, for its own handler only.

Dead letters, and on request what succeeded, what was cancelled, and what a handler never got because it began later.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg.rows import class_row, dict_row

from outbox.admin import audit
from outbox.admin.edit import Edit
from outbox.admin.replay_batches import Batches, Counted, Outcome, edited
from outbox.admin.selection import Selection
from outbox.database import Database, opened
from outbox.names import check_schema

RESUMED_WITHIN = timedelta(days=7)
"""An interrupted replay that is older is nobody's intention any more: the same command begins anew."""

BATCH = 500
"""Deliveries put back in one transaction at the most."""

MOST_NOTED = 300
"""Characters of who and why that each delivery keeps; the audit row has all of them."""


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


@dataclass(frozen=True)
class Candidates:
    """What a replay would put back: `count` deliveries when it was asked, `at`; `sample` is the first of them.

    `orphans` are dead letters that fit and are left, by handler: no worker has announced it, or it was forgotten."""

    count: int
    at: datetime
    sample: tuple[Candidate, ...]
    orphans: Mapping[str, int]


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
    counted: Candidates | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Replayed:
    """Put the deliveries that fit back, the oldest first; their handlers run them again with all their attempts.

    `outcome` says what became of them; for all but dead ones `which.since` and `until` are about when the event was
    added. At most `limit` of them and `rate` a second. What gets this outcome while it runs is not touched, nor are
    dead letters of handlers that nobody has. With `edit` each runs as a copy of its event with an edited payload, whose
    header `outbox-copy-of` has the original's id. With `counted`, what `candidates` said of the same, it is not counted
    again.

    One transaction for each batch, at most 500: an interrupted replay has put back what it reported to `progress`
    (done, total), and goes on from there when the same one is asked for again, unless `anew`. The same is what selects
    the same, or what was called the same in `known_as`. Several at once share the work, none is put back twice. Audit
    rows say who (`actor`, by default user@host), what and why (`reason`).

    Raises `ValueError` for a rate or limit that is not positive, `UnknownError` for a handler that no worker announced,
    `PayloadError` for a payload that cannot be edited so, and otherwise as `status` does.

    >>> replay("postgresql:///shop", Selection(handler="send_email"), reason="mail server is back")
    Replayed(asked=12, count=12, total=12)
    """
    if (limit is not None and limit < 1) or (rate is not None and not 0 < rate < math.inf):
        raise ValueError("limit and rate must be positive and finite")
    with opened(database, schema) as (connection, where), connection.cursor(row_factory=dict_row) as cursor:
        who = actor or audit.current_actor()
        by = f"by {who}" + (f": {reason}" if reason else "")
        run = Batches(cursor, where, which, outcome, edit, by=by[:MOST_NOTED])
        detail = {**_described(which, outcome, edit), "limit": limit, "rate": rate}
        name = _fingerprint(known_as or _known_as(which, outcome, edit, limit))
        with connection.transaction():
            run.forget(name, begun_within=timedelta() if anew else RESUMED_WITHIN)
            known = None if counted is None else Counted(counted.count, counted.at, {})
            state = run.resume(name) or run.begin(name, who, limit, known)
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
                run.tally(found)
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
        query = f"SELECT actor, began_at, asked, count FROM {check_schema(where)}.replay"
        query += " WHERE known_as = %s AND began_at > clock_timestamp() - %s::interval"
        return cursor.execute(query.encode(), [name, RESUMED_WITHIN]).fetchone()


def candidates(
    database: Database,
    which: Selection,
    *,
    outcome: Outcome = Outcome.DEAD,
    edit: Edit | None = None,
    schema: str | None = None,
    limit: int = 10,
) -> Candidates:
    """What `replay` would put back now, with the first of it, at most `limit`. Raises as `replay` does.

    >>> candidates("postgresql:///shop", Selection(handler="send_email")).count
    12
    """
    with opened(database, schema) as (connection, where), connection.cursor(row_factory=dict_row) as cursor:
        with connection.transaction():
            run = Batches(cursor, where, which, outcome, edit)
            count, now, orphans = run.count()
            rows = run.choose({"began_at": now}, limit)
        sample = (
            Candidate(
                str(row["event_id"]), row["handler"], row["name"], row["key"], edited(row, edit) or row["payload_json"]
            )
            for row in rows
        )
        return Candidates(count, now, tuple(sample), orphans)


def batch_size(left: int, rate: float | None) -> int:
    """How many to put back next: about a tenth of a second's worth at `rate`."""
    return max(1, min(left, BATCH, BATCH if rate is None else int(rate / 10)))


def pause(done: int, rate: float, elapsed: float) -> float:
    """Seconds to wait so that `done` deliveries have taken as long as `rate` a second allows."""
    return max(0.0, done / rate - elapsed)


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


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
