"""`outbox doctor` on real servers: silent on an installation that is well, and every check fires when it should."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import redis
from psycopg import sql
from pydantic import SecretStr
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import outbox
import workers
from console import main
from console.doctor import (
    CHECKS,
    Check,
    Finding,
    Severity,
    Verdict,
    clocks,
    database,
    examine,
    installation,
    progress,
    sessions,
    store,
    versions,
)
from console.servers import Redis
from outbox import admin, migrations
from outbox.names import lock_id, owner_key, stream_key
from outbox.settings import Settings
from relay.bounds import Limit
from relay.service import Relay

Db = psycopg.Connection[Any]
OK, INFO, WARNING, ERROR = Severity


@pytest.fixture
def settings(database_url: str, outbox_redis_url: str) -> Settings:
    """This test's database, and a prefix of its own in a Redis that tests share."""
    return Settings(  # type: ignore[call-arg]
        database_url=database_url,  # type: ignore[arg-type]
        redis_url=outbox_redis_url,  # type: ignore[arg-type]
        prefix=f"doctor-{uuid.uuid4().hex[:8]}",
        _env_file=None,  # type: ignore[call-arg]
    )


@pytest.fixture
def db(database_url: str) -> Iterator[Db]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def own_redis(settings: Settings, redis_server: Redis) -> Settings:
    """The same with a Redis that this test may set as it likes."""
    return settings.model_copy(update={"redis_url": SecretStr(redis_server.url)})


def look(settings: Settings, name: str) -> Finding:
    """What one check finds."""
    [found] = examine(settings, [check for check in CHECKS if check.name == name])
    return found


def client(settings: Settings) -> redis.Redis:
    return redis.Redis.from_url(settings.redis_url.get_secret_value())


def add(db: Db, name: str = "paid", count: int = 1, age: str = "0 s") -> None:
    db.execute(
        "INSERT INTO outbox.event (name, payload, created_at)"
        " SELECT %s, '{}', clock_timestamp() - %s::interval FROM generate_series(1, %s)",
        [name, age, count],
    )


def register(db: Db, name: str = "bill", event: str = "paid", silent: str = "0 s") -> None:
    db.execute(
        "INSERT INTO outbox.handler (name, event_name, done_tick, done_seq, last_seen)"
        " VALUES (%s, %s, 0, 0, clock_timestamp() - %s::interval)",
        [name, event, silent],
    )


@contextmanager
def leading(database_url: str) -> Iterator[None]:
    with psycopg.connect(database_url, autocommit=True) as leader:
        leader.execute("SELECT pg_advisory_lock(%s)", [lock_id("relay", "outbox")])
        leader.execute("UPDATE outbox.relay SET leader = 'a relay', backend_pid = pg_backend_pid()")
        yield


# Health ---------------------------------------------------------------------------------------------------------------


def test_an_installation_that_is_well_has_no_findings(settings: Settings, start_redis: Callable[..., Redis]) -> None:
    server = start_redis(persistent=True)
    found = asyncio.run(at_work(settings.model_copy(update={"redis_url": SecretStr(server.url)})))
    # Whether the servers under test have holes is not this test's business.
    unwell = [finding for finding in found if finding.severity is not OK and not finding.check.endswith("-version")]
    assert not unwell
    assert [finding.check for finding in found] == [check.name for check in CHECKS]
    assert all(finding.remedy is None for finding in found if finding.severity is OK)


async def at_work(settings: Settings) -> list[Finding]:
    """What is found beside a relay and a worker that have handled an event."""
    app = workers.App()
    handled = asyncio.Event()

    @app.handler("paid")
    async def bill(number: int) -> None:
        handled.set()

    relay = Relay(settings)
    relaying = threading.Thread(target=relay.run, daemon=True)
    relaying.start()
    try:
        async with workers.Worker(app, settings), asyncio.timeout(60):
            with Session(create_engine(settings.sqlalchemy_url())) as session:
                outbox.add(session, "paid", number=1)
                session.commit()
            await handled.wait()
            return await asyncio.to_thread(examine, settings)
    finally:
        relay.stop()
        relaying.join(30)


# PostgreSQL and the schema --------------------------------------------------------------------------------------------


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


# Sessions -------------------------------------------------------------------------------------------------------------


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


# Relay and handlers ---------------------------------------------------------------------------------------------------


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


def test_dead_letters_are_a_remark(settings: Settings, db: Db) -> None:
    register(db)
    db.execute(
        "INSERT INTO outbox.dead_letter (event_id, handler, event_created_at, name, payload, attempts, error)"
        " VALUES (gen_random_uuid(), 'bill', now(), 'paid', '{}', 1, 'no')"
    )
    found = look(settings, "dead")
    assert (found.severity, found.evidence) == (INFO, "1 dead letters: bill 1")


# Redis ----------------------------------------------------------------------------------------------------------------


def test_a_redis_that_is_away_is_one_error_and_what_needs_it_is_not_tried(settings: Settings) -> None:
    away = settings.model_copy(update={"redis_url": SecretStr("redis://:s3cret@127.0.0.1:1/0")})
    found = {finding.check: finding for finding in examine(away)}
    assert found["redis"].severity is ERROR
    assert "redis://:***@127.0.0.1:1/0" in found["redis"].evidence
    assert "s3cret" not in str(found)
    assert not found["groups"].made
    assert found["schema"].severity is OK


def test_a_replica_is_found(own_redis: Settings, start_redis: Callable[..., Redis]) -> None:
    primary = start_redis()
    client(own_redis).replicaof("127.0.0.1", str(primary.port))
    assert look(own_redis, "redis").severity is ERROR


def test_a_redis_that_evicts_streams_is_found(own_redis: Settings) -> None:
    server = client(own_redis)
    server.config_set("maxmemory-policy", "allkeys-lru")
    assert look(own_redis, "eviction").severity is INFO
    server.config_set("maxmemory", "1gb")
    found = look(own_redis, "eviction")
    assert (found.severity, found.evidence.partition(":")[0]) == (WARNING, "Redis maxmemory-policy is allkeys-lru")
    server.config_set("maxmemory-policy", "noeviction")
    assert look(own_redis, "eviction").severity is OK


def test_a_redis_that_is_nearly_full_is_found(own_redis: Settings) -> None:
    server = client(own_redis)
    used = int(server.info("memory")["used_memory"])
    server.config_set("maxmemory", used)
    assert look(own_redis, "memory").severity is ERROR
    server.config_set("maxmemory", 100 * used)
    assert look(own_redis, "memory").severity is OK


def test_a_redis_that_cannot_write_its_disk_is_found(own_redis: Settings, redis_server: Redis) -> None:
    assert look(own_redis, "persistence").severity is INFO, "it keeps nothing, which is survived"
    shutil.rmtree(redis_server.folder)
    server = client(own_redis)
    server.set("a", "b")
    server.bgsave()
    deadline = time.monotonic() + 30
    while server.info("persistence")["rdb_last_bgsave_status"] == "ok":
        assert time.monotonic() < deadline
    found = look(own_redis, "persistence")
    assert found.severity is ERROR
    assert "rdb_last_bgsave_status" in found.evidence


def test_clocks_that_differ_are_found(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "time", SimpleNamespace(time=lambda: time.time() - 3600))
    found = look(settings, "clocks")
    assert found.severity is WARNING
    assert found.evidence.endswith("ahead of that of this machine")


def test_a_prefix_of_another_installation_is_found(settings: Settings) -> None:
    client(settings).set(owner_key(settings.prefix), "7/other/outbox")
    found = look(settings, "prefix")
    assert found.severity is ERROR
    assert "belongs to 7/other/outbox" in found.evidence


def test_groups_of_handlers_that_nobody_knows_are_found(settings: Settings, db: Db) -> None:
    register(db)
    key = stream_key(settings.prefix, "paid")
    client(settings).xgroup_create(key, "bill", "0", mkstream=True)
    assert look(settings, "groups").severity is OK
    client(settings).xgroup_create(key, "gone", "0")
    found = look(settings, "groups")
    assert found.severity is WARNING
    assert f"{key} has a group gone" in found.evidence


def test_streams_that_nobody_reads_are_a_remark(settings: Settings, db: Db) -> None:
    db.execute("INSERT INTO outbox.stream (name, tick, seq) VALUES ('left', 1, 1)")
    client(settings).xadd(stream_key(settings.prefix, "left"), {"a": "b"})
    found = look(settings, "groups")
    assert found.severity is INFO
    assert "holds 1 entries that no handler reads" in found.evidence


def test_streams_at_their_limit_are_found(settings: Settings, db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    register(db)
    for _ in range(3):
        client(settings).xadd(stream_key(settings.prefix, "paid"), {"a": "b"})
    assert look(settings, "streams").severity is OK
    monkeypatch.setattr(store, "MAIN", Limit(entries=3, size=1 << 20))
    assert "holds 3 entries" in look(settings, "streams").evidence
    monkeypatch.setattr(store, "MAIN", Limit(entries=100, size=100))
    assert look(settings, "streams").severity is WARNING
    client(settings).xadd(f"{stream_key(settings.prefix, 'paid')}:bill", {"a": "b"})
    monkeypatch.setattr(store, "MAIN", Limit(entries=100, size=1 << 20))
    monkeypatch.setattr(store, "CATCH_UP", Limit(entries=1, size=1 << 20))
    assert look(settings, "streams").severity is INFO


def test_a_user_of_redis_with_few_rights_keeps_no_check_from_being_made(own_redis: Settings) -> None:
    client(own_redis).execute_command("ACL SETUSER few on >secret ~* +ping +info")
    url = own_redis.redis_url.get_secret_value().replace("//", "//few:secret@")
    found = {finding.check: finding for finding in examine(own_redis.model_copy(update={"redis_url": SecretStr(url)}))}
    assert found["memory"].severity is OK
    assert (found["prefix"].severity, found["prefix"].made) == (INFO, False)


# The examination itself -----------------------------------------------------------------------------------------------


def test_a_check_that_trips_or_takes_too_long_says_so_and_stops_no_other(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "STATEMENT_TIMEOUT", 0.05)

    def slow(here: installation.Installation) -> Verdict:
        with here.reading() as connection:
            connection.execute("SELECT pg_sleep(60)")
        raise AssertionError

    def wrong(here: installation.Installation) -> Verdict:
        raise KeyError("s3cret")

    last = next(check for check in CHECKS if check.name == "postgresql")
    found = examine(settings, [Check("slow", "", "", slow), Check("wrong", "", "", wrong), last])
    assert [(finding.severity, finding.made) for finding in found] == [(WARNING, False), (WARNING, False), (OK, True)]
    assert found[0].evidence == "not checked: PostgreSQL took longer than a check may"
    assert "s3cret" not in found[1].evidence


def test_a_locked_table_holds_no_check_up(settings: Settings, db: Db) -> None:
    with db.transaction():
        db.execute("LOCK TABLE outbox.handler IN ACCESS EXCLUSIVE MODE")
        handlers, partitions = look(settings, "handlers"), look(settings, "partitions")
    assert (handlers.severity, handlers.made) == (WARNING, False)
    assert partitions.severity is OK


def test_an_examination_changes_nothing(settings: Settings, db: Db) -> None:
    def written() -> Any:
        return db.execute("SELECT pg_current_xact_id_if_assigned(), pg_snapshot_xmax(pg_current_snapshot())").fetchone()

    examine(settings, [check for check in CHECKS if check.name != "schema"])
    before = written()
    examine(settings, [check for check in CHECKS if check.name not in ("schema", "listen")])
    assert written() == before


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def doctor(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("OUTBOX_DATABASE_URL", settings.libpq_url())
    monkeypatch.setenv("OUTBOX_REDIS_URL", settings.redis_url.get_secret_value())
    monkeypatch.setenv("OUTBOX_PREFIX", settings.prefix)

    def run(*arguments: str) -> tuple[int, str, str]:
        return (main.run(["doctor", *arguments]), *capsys.readouterr())

    return run


def test_an_error_exits_1_and_its_absence_0(doctor: Any, database_url: str) -> None:
    status, out, err = doctor()
    assert (status, err) == (1, "")
    assert out.startswith("error")
    assert "→ start `outbox relay`" in out
    assert "checks are fine" in out
    with leading(database_url):
        status, out, err = doctor()
    assert (status, err) == (0, "")
    assert "error" not in out.split()


def test_json_has_every_check(doctor: Any) -> None:
    found = json.loads(doctor("-o", "json")[1])
    assert [finding["check"] for finding in found] == [check.name for check in CHECKS]
    assert set(found[0]) == {"check", "severity", "evidence", "remedy", "made"}
    lines = doctor("--output", "jsonl")[1].splitlines()
    assert [json.loads(line)["check"] for line in lines] == [finding["check"] for finding in found]
    shown = doctor("--all")[1]
    assert all(check.name in shown for check in CHECKS)


@pytest.mark.parametrize(
    "flag", ["--database-url=postgresql://app:s3cret@127.0.0.1:1/x", "--redis-url=redis://u:s3cret@127.0.0.1:1"]
)
def test_a_server_that_is_away_is_one_line_and_a_finding(doctor: Any, flag: str) -> None:
    status, out, err = doctor(flag, "-o", "json")
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("outbox: cannot reach ")
    assert "127.0.0.1:1" in err
    assert "s3cret" not in out + err
    assert json.loads(out)
