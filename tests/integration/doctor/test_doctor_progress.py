"""The doctor at relay and handlers: every check fires when it should."""

from __future__ import annotations

import pytest

from console.doctor import (
    progress,
)
from outbox import admin
from outbox.settings import Settings
from tests.integration.doctor.conftest import ERROR, INFO, OK, WARNING, Db, add, leading, look, register


def test_without_a_relay_there_is_an_error_that_says_what_waits(settings: Settings, db: Db) -> None:
    add(db, count=2)
    found = look(settings, "relay")
    assert found.severity is ERROR
    assert found.evidence.startswith("none leads; 2 events wait")


def test_a_relay_that_leads_and_does_not_publish_is_found(settings: Settings, db: Db, database_url: str) -> None:
    with leading(database_url):
        assert look(settings, "relay").severity is OK
        add(db, age="10 min")
        found = look(settings, "relay")
    assert found.severity is ERROR
    assert found.evidence.startswith("a relay leads and does not publish")


def test_what_is_paused_is_named(settings: Settings, db: Db) -> None:
    register(db)
    admin.pause(db, "handler", "bill", actor="kim")
    found = look(settings, "paused")
    assert found.severity is INFO
    assert "handler bill since " in found.evidence
    assert "kim" in found.evidence
    admin.pause(db, "relay", actor="kim")
    assert look(settings, "relay").severity is WARNING


def test_a_handler_that_nobody_serves_is_found(settings: Settings, db: Db) -> None:
    register(db, silent="10 min")
    found = look(settings, "handlers")
    assert (found.severity, found.evidence) == (WARNING, "no worker serves bill since 10 min")
    add(db, count=2)
    found = look(settings, "handlers")
    assert (found.severity, found.evidence) == (ERROR, "no worker serves bill since 10 min, and 2 events wait for it")


def test_events_that_nobody_handles_are_found(settings: Settings, db: Db) -> None:
    register(db)
    add(db, "paid")
    assert look(settings, "names").severity is OK
    add(db, "pay", count=2)
    found = look(settings, "names")
    assert (found.severity, found.evidence) == (WARNING, "no handler for pay (2)")


def test_retries_that_pile_up_are_found(settings: Settings, db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    register(db)
    add(db, count=3)
    db.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " SELECT id, 'bill', created_at, 'retrying', 1, clock_timestamp() + interval '1 hour' FROM outbox.event"
    )
    assert look(settings, "retries").severity is OK
    monkeypatch.setattr(progress, "MANY_RETRIES", 3)
    found = look(settings, "retries")
    assert (found.severity, found.evidence) == (WARNING, "bill: 3 events are to be tried again")
    db.execute("UPDATE outbox.delivery SET due_at = clock_timestamp() - interval '10 min'")
    assert "overdue for 10 min" in look(settings, "retries").evidence


def test_retries_that_pile_up_at_one_of_many_handlers_are_found(settings: Settings, db: Db) -> None:
    for number in range(25):
        register(db, f"h{number}")
    add(db, count=1_001)
    db.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " SELECT id, 'h1', created_at, 'retrying', 1, clock_timestamp() + interval '1 hour' FROM outbox.event"
    )
    found = look(settings, "retries")
    assert (found.severity, found.evidence) == (WARNING, "h1: ≥ 800 events are to be tried again")


def test_retries_of_a_handler_that_nobody_has_are_found(settings: Settings, db: Db) -> None:
    register(db)
    add(db, count=2)
    db.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " SELECT id, unnest('{away,bill,gone}'::text[]), created_at, 'retrying', 0, clock_timestamp() FROM outbox.event"
    )
    found = look(settings, "retries")
    assert found.severity is ERROR
    assert found.evidence.split("; ")[1].startswith("gone: 2 retries, and nobody has that handler")
    assert found.evidence.startswith("away: 2 retries")
    register(db, "away")
    register(db, "gone")
    assert look(settings, "retries").severity is OK


def test_dead_letters_are_a_remark(settings: Settings, db: Db) -> None:
    register(db)
    db.execute(
        "INSERT INTO outbox.dead_letter (event_id, handler, event_created_at, name, payload, attempts, error)"
        " VALUES (gen_random_uuid(), 'bill', now(), 'paid', '{}', 1, 'no')"
    )
    found = look(settings, "dead")
    assert (found.severity, found.evidence) == (INFO, "1 dead letters: bill 1")
    db.execute("UPDATE outbox.handler SET name = 'mail'")
    assert look(settings, "dead").evidence == "1 dead letters: 1 of handlers that nobody has"
