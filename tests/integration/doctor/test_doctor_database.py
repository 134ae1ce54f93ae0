"""The doctor at PostgreSQL and the schema: every check fires when it should."""

from __future__ import annotations

import uuid
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from console.doctor import (
    database,
    examine,
    versions,
)
from outbox import migrations
from outbox.settings import Settings
from tests.integration.doctor.conftest import ERROR, INFO, OK, WARNING, Db, add, client, look


def test_a_database_that_is_away_is_one_error_and_what_needs_it_is_not_tried(settings: Settings) -> None:
    away = settings.model_copy(update={"database_url": SecretStr("postgresql://app:s3cret@127.0.0.1:1/shop")})
    found = {finding.check: finding for finding in examine(away)}
    assert found["postgresql"].severity is ERROR
    assert "postgresql://app:***@127.0.0.1:1/shop" in found["postgresql"].evidence
    assert "s3cret" not in str(found)
    assert not found["relay"].made
    assert found["eviction"].made


def test_known_holes_of_servers_are_named(settings: Settings, db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    version = db.info.server_version // 10_000
    of_redis = client(settings).info("server")
    product, tells = ("Valkey", "valkey_version") if "valkey_version" in of_redis else ("Redis", "redis_version")
    series = versions.release(of_redis[tells])[:2]
    holes = (
        versions.Hole("PostgreSQL", "CVE-1", "it leaks", {(version,): 99}, "https://example.org/1"),
        versions.Hole(product, "CVE-2", "it leaks", {series: 99}, "https://example.org/2"),
    )
    monkeypatch.setattr(versions, "HOLES", holes)
    ours, its = look(settings, "postgresql-version"), look(settings, "redis-version")
    assert (ours.severity, its.severity) == (WARNING, WARNING)
    assert "CVE-1" in ours.evidence
    assert f"{version}.99" in str(ours.remedy)
    assert f"{product} {of_redis[tells]} has CVE-2" in its.evidence
    monkeypatch.setattr(versions, "HOLES", ())
    assert look(settings, "postgresql-version").severity is OK
    assert look(settings, "redis-version").severity is OK


def test_a_schema_that_was_changed_by_hand_is_found(settings: Settings, db: Db) -> None:
    db.execute("ALTER TABLE outbox.handler ADD COLUMN colour text")
    assert look(settings, "schema").severity is WARNING
    db.execute("DROP INDEX outbox.delivery_due")
    found = look(settings, "schema")
    assert found.severity is ERROR
    assert found.evidence.endswith("missing: index delivery_due")


def test_an_older_schema_is_one_error_and_what_reads_it_is_not_tried(settings: Settings, db: Db) -> None:
    db.execute("DELETE FROM outbox.migration WHERE version = (SELECT max(version) FROM outbox.migration)")
    found = {finding.check: finding for finding in examine(settings)}
    assert found["schema"].severity is ERROR
    assert found["schema"].evidence.startswith("not applied: ")
    assert found["handlers"].evidence == "not checked: it needs schema"
    assert found["listen"].severity is OK


def test_a_database_without_an_outbox_says_so(settings: Settings, empty_database_url: str) -> None:
    found = look(settings.model_copy(update={"database_url": SecretStr(empty_database_url)}), "schema")
    assert (found.severity, found.evidence) == (ERROR, "there is no outbox in schema 'outbox'")


def test_a_trigger_that_was_left_out_is_a_remark(settings: Settings, db: Db) -> None:
    db.execute("DROP TRIGGER wake_relay ON outbox.event")
    found = look(settings, "schema")
    assert found.severity is INFO
    assert "--without-trigger" in found.evidence


def test_a_worker_at_work_whose_role_lacks_grants_is_named(settings: Settings, db: Db, database_url: str) -> None:
    role = f"worker_{uuid.uuid4().hex[:8]}"
    db.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
    try:
        with psycopg.connect(_as(database_url, role), application_name="outbox worker"):
            assert look(settings, "roles").severity is OK, "of another installation, for all we know"
            db.execute(sql.SQL("GRANT USAGE ON SCHEMA outbox TO {}").format(sql.Identifier(role)))
            found = look(settings, "roles")
            assert found.severity is ERROR
            assert f"role {role} lacks " in found.evidence
            db.execute(migrations.roles_sql(worker=role).encode())
            assert look(settings, "roles").severity is OK
        reader = look(settings.model_copy(update={"database_url": SecretStr(_as(database_url, role))}), "schema")
        assert reader.severity is INFO, "only the owner can build the schema anew to compare it"
    finally:
        db.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


def test_the_reader_s_role_may_ask_everything(settings: Settings, db: Db, database_url: str) -> None:
    role = f"reader_{uuid.uuid4().hex[:8]}"
    db.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
    try:
        db.execute(migrations.roles_sql(reader=role).encode())
        found = examine(settings.model_copy(update={"database_url": SecretStr(_as(database_url, role))}))
        assert [finding for finding in found if not finding.made] == []
        lacking = [finding for finding in found if finding.severity in (WARNING, ERROR)]
        assert {finding.check for finding in lacking} <= {"relay", "postgresql-version", "redis-version"}
    finally:
        db.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


def _as(url: str, role: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))


def test_partitions_that_are_not_made_ahead_are_found(settings: Settings, db: Db) -> None:
    row = db.execute(
        "SELECT array_agg(c.relname::text ORDER BY c.relname)"
        " FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = 'outbox.delivery'::regclass AND c.relname <> 'delivery_default'"
    ).fetchone()
    assert row is not None
    days = row[0]
    for day in days[-2:]:
        db.execute(sql.SQL("DROP TABLE outbox.{}").format(sql.Identifier(day)))
    assert look(settings, "partitions").severity is WARNING
    for day in days[1:-2]:
        db.execute(sql.SQL("DROP TABLE outbox.{}").format(sql.Identifier(day)))
    found = look(settings, "partitions")
    assert found.severity is ERROR
    assert found.evidence.startswith("delivery has no partition for ")


def test_rows_in_a_default_partition_are_found(settings: Settings, db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    add(db, count=3, age="-30 days")
    found = look(settings, "default-partitions")
    assert (found.severity, found.evidence) == (WARNING, "event_default holds 3 rows")
    monkeypatch.setattr(database, "MANY_DEFAULT", 2)
    assert look(settings, "default-partitions").severity is ERROR


def test_ticks_that_are_not_thinned_are_found(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "MANY_TICKS", 1)
    assert look(settings, "ticks").severity is WARNING


def test_a_sequence_near_its_end_is_found(settings: Settings, db: Db) -> None:
    db.execute("SELECT setval('outbox.event_seq', 9000000000000000000)")
    found = look(settings, "counters")
    assert (found.severity, found.evidence) == (ERROR, "98% of sequence event_seq is used up")
