"""Discarding dead letters: those that fit, for good, with the reason; nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from outbox import admin
from outbox.admin import Selection
from tests.integration.mending.conftest import Result, add, audits, bury, register, states

Db = psycopg.Connection[Any]
Run = Callable[..., Result]


def test_what_fits_is_gone_for_good_and_its_deliveries_stay_dead(outbox: Run, db: Db) -> None:
    register(db, "bill", "mail")
    ids = add(db, 3)
    bury(db, "bill", *ids, error="no such card")
    bury(db, "mail", *ids)
    events = db.execute("SELECT * FROM outbox.event ORDER BY id").fetchall()
    done = outbox("discard", "--handler", "bill", "--error", "card", "--reason", "a test", "--yes")
    assert (done.status, done.out) == (0, "discarded 3 of 3 dead letters\n")
    assert {letter.handler for letter in admin.dead_letters(db)} == {"mail"}
    assert states(db, ids[0]) == {"bill": "dead", "mail": "dead"}
    assert db.execute("SELECT * FROM outbox.event ORDER BY id").fetchall() == events
    detail = {"filter": {"handler": "bill", "error": "card"}, "count": 3, "limit": None}
    assert audits(db) == [("discard", "a test", detail)]
    assert outbox("replay", "--handler", "bill", "--yes").out == "put back 0 of 0 dead letters\n"


def test_many_go_in_batches_the_oldest_first_up_to_the_limit(db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.admin.discarding.BATCH", 4)
    ids = add(db, 10)
    bury(db, "bill", *ids)
    db.execute("UPDATE outbox.dead_letter SET died_at = now() - interval '1 day' WHERE event_id = %s", [ids[7]])
    seen: list[tuple[int, int]] = []
    done = admin.discard(db, Selection(), reason="x", limit=9, progress=lambda *found: seen.append(found))
    assert (done, seen) == (admin.Discarded(9, 9), [(4, 9), (8, 9), (9, 9)])
    (left,) = admin.dead_letters(db)
    assert str(left.event_id) != ids[7]


def test_what_a_replay_holds_is_left_to_it(database_url: str, db: Db) -> None:
    bury(db, "bill", *add(db, 2))
    with psycopg.connect(database_url) as replaying:
        replaying.execute("SELECT FROM outbox.dead_letter LIMIT 1 FOR UPDATE")
        assert admin.discard(db, Selection(), reason="x") == admin.Discarded(2, 1)


def test_a_dry_run_shows_them_and_changes_nothing(outbox: Run, db: Db) -> None:
    bury(db, "bill", *add(db, 2))
    assert outbox("discard", "--all", "--reason", "x", "--dry-run").out.startswith("would discard 2 dead letters\n")
    assert (len(admin.dead_letters(db)), audits(db)) == (2, [])


def test_none_that_fits_is_a_failure(outbox: Run) -> None:
    assert outbox("discard", "--all", "--reason", "x", "--yes").status == 1


@pytest.mark.parametrize("arguments", [["--all"], ["--reason", "x"], ["--all", "--reason", " "]])
def test_it_takes_a_reason_and_a_selection(outbox: Run, db: Db, arguments: list[str]) -> None:
    bury(db, "bill", *add(db))
    assert outbox("discard", *arguments, "--yes").status == 2
    assert outbox("discard", "--all", "--reason", "x").status == 2
    assert len(admin.dead_letters(db)) == 1
