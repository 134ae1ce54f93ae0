"""The doctor at PostgreSQL's sessions: every check fires when it should."""

from __future__ import annotations

import uuid

import psycopg
import pytest
from psycopg import sql

from console.doctor import (
    sessions,
)
from outbox.settings import Settings
from tests.integration.doctor.conftest import ERROR, INFO, WARNING, Db, add, look


def test_a_long_transaction_that_holds_events_is_found(
    settings: Settings, db: Db, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "LONG", 0.0)
    with psycopg.connect(database_url, application_name="a report") as writer:
        add(writer)
        found = look(settings, "transactions")
        assert found.severity is WARNING
        assert f"a report of postgres in {writer.info.dbname}, process {writer.info.backend_pid}" in found.evidence
        assert "nobody sees its events before it ends" in found.evidence
        monkeypatch.setattr(sessions, "TOO_LONG", 0.0)
        assert look(settings, "transactions").severity is ERROR
        writer.rollback()
        assert str(writer.info.backend_pid) not in look(settings, "transactions").evidence


def test_a_long_transaction_in_another_database_is_a_remark(
    settings: Settings, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "LONG", 0.0)
    with psycopg.connect(postgres_url) as other:
        other.execute("SELECT pg_current_xact_id()")
        found = look(settings, "transactions")
        assert found.severity is INFO
        assert f"process {other.info.backend_pid}" in found.evidence


def test_a_prepared_transaction_that_was_left_is_found(
    settings: Settings, db: Db, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "LONG", 0.0)
    name = uuid.uuid4().hex
    with psycopg.connect(database_url, autocommit=True) as writer:
        writer.execute("BEGIN")
        add(writer)
        writer.execute(sql.SQL("PREPARE TRANSACTION {}").format(sql.Literal(name)))
    try:
        found = look(settings, "prepared")
        assert found.severity is ERROR
        assert name in found.evidence
        assert "nobody sees its events" in found.evidence
    finally:
        db.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(name)))
    assert name not in look(settings, "prepared").evidence
