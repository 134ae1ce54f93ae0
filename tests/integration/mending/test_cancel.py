"""Cancelling: what has not run never runs, what has is left alone and said so."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg
import pytest

from outbox import admin
from outbox.errors import UnknownError
from tests.integration.mending.conftest import Result, add, audits, bury, deliver, register, states

Db = psycopg.Connection[Any]
Run = Callable[..., Result]


def test_what_has_not_run_is_cancelled_at_every_handler_and_the_rest_stays(outbox: Run, db: Db) -> None:
    register(db, "bill", "mail", "ship", "stock")
    (id, other) = add(db, 2)
    deliver(db, "mail", "retrying", id)
    deliver(db, "ship", "done", id)
    deliver(db, "stock", "retrying", id, lease="1 minute")
    done = outbox("cancel", id, "--reason", "ordered twice", "--yes", "-o", "json")
    assert done.status == 3
    (found,) = done.json
    assert (found["cancelled"], found["left"]) == (["bill", "mail"], {"ship": "done", "stock": "running"})
    assert states(db, id) == {"bill": "cancelled", "mail": "cancelled", "ship": "done", "stock": "retrying"}
    assert states(db, other) == {}
    (row,) = db.execute(
        "SELECT due_at, lease, error FROM outbox.delivery WHERE handler = 'mail' AND event_id = %s", [id]
    )
    assert row[:2] == (None, None)
    assert row[2].endswith(": ordered twice")
    detail = {"event": id, "handlers": ["bill", "mail"], "scheduled": False}
    assert audits(db) == [("cancel", "ordered twice", detail)]


def test_one_handler_alone_is_cancelled_known_or_not(outbox: Run, db: Db) -> None:
    register(db, "bill", "mail")
    (id,) = add(db)
    register(db, "greet", event="other")
    known = outbox("cancel", id, "--handler", "mail", "--yes")
    assert (known.status, known.err) == (0, "")
    for name in ("to_come", "greet"):
        asked = outbox("cancel", id, "--handler", name, "--dry-run", "-o", "json")
        assert (asked.status, asked.json[0]["unannounced"]) == (0, [name])
        assert asked.err.startswith(f"no worker has announced {name} for order: ")
    assert outbox("cancel", id, "--handler", "to_come", "--yes").status == 0
    assert states(db, id) == {"mail": "cancelled", "to_come": "cancelled"}


def test_a_letter_that_was_put_back_is_cancelled_also_when_its_event_is_gone(outbox: Run, db: Db) -> None:
    register(db, "bill", "mail", "ship")
    (id,) = add(db)
    bury(db, "bill", id)
    bury(db, "mail", id)
    db.execute("DELETE FROM outbox.event")
    db.execute("DELETE FROM outbox.delivery")
    assert outbox("replay", id, "--handler", "bill", "--yes").status == 0
    done = outbox("cancel", id, "--yes", "-o", "json")
    assert (done.json[0]["event"], done.json[0]["cancelled"], done.json[0]["left"]) == (
        "order", ["bill"], {"mail": "dead"},
    )  # fmt: skip
    assert states(db, id) == {"bill": "cancelled"}
    # What is gone comes to nobody any more.
    for name in ("ship", "to_come"):
        late = outbox("cancel", id, "--handler", name, "--yes")
        assert (late.status, f"not at {name}" in late.err) == (1, True)
    assert states(db, id) == {"bill": "cancelled"}


def test_a_lease_that_has_ended_is_no_run(db: Db) -> None:
    register(db, "bill")
    (id,) = add(db)
    deliver(db, "bill", "retrying", id, lease="-1 second")
    assert admin.cancel(db, UUID(id)).cancelled == ("bill",)


def test_what_is_not_due_yet_is_gone(outbox: Run, db: Db) -> None:
    (row,) = db.execute(
        "INSERT INTO outbox.scheduled (due_at, name, payload) VALUES (now() + '1 day', 'a', '{}') RETURNING id::text"
    )
    assert "before it was due" in outbox("cancel", row[0], "--dry-run").out
    assert outbox("cancel", row[0], "--yes").status == 0
    assert db.execute("SELECT FROM outbox.scheduled").fetchall() == []
    assert audits(db)[0][2] == {"event": row[0], "handlers": [], "scheduled": True}


def test_a_dry_run_changes_nothing(outbox: Run, db: Db) -> None:
    register(db, "bill")
    (id,) = add(db)
    assert "bill" in outbox("cancel", id, "--dry-run").out
    assert (states(db, id), audits(db)) == ({}, [])


def test_too_late_everywhere_is_a_failure(outbox: Run, db: Db) -> None:
    register(db, "bill")
    (id,) = add(db)
    deliver(db, "bill", "done", id)
    late = outbox("cancel", id, "--yes")
    assert (late.status, "bill: done" in late.out) == (1, True)
    unknown = outbox("cancel", str(uuid.UUID(int=7)), "--yes")
    assert (unknown.status, "no event has the id" in unknown.err) == (1, True)
    (alone,) = add(db, event="unheard_of")
    assert "no handler of unheard_of is known" in outbox("cancel", alone, "--yes").err
    assert outbox("cancel", "no-id", "--yes").status == 2
    with pytest.raises(UnknownError):
        admin.cancel(db, UUID(int=7))


def test_a_first_attempt_that_is_about_to_commit_wins(database_url: str, db: Db) -> None:
    register(db, "bill")
    (id,) = add(db)
    found: list[admin.Cancellation] = []
    with psycopg.connect(database_url) as worker:
        deliver(worker, "bill", "done", id)
        thread = threading.Thread(target=lambda: found.append(admin.cancel(database_url, UUID(id))))
        thread.start()
        waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%cancelled%'"
        while db.execute(waiting.encode()).fetchone() is None and thread.is_alive():
            pass
        worker.commit()
    thread.join()
    assert (found[0].cancelled, found[0].left) == ((), {"bill": "running"})
    assert states(db, id) == {"bill": "done"}
