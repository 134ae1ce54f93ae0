"""`outbox.migrations`: applying, printing and checking, and the roles' privileges."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from outbox import migrations
from outbox.errors import ConfigurationError, SchemaError

pytestmark = pytest.mark.oldest

ALL = [script.version for script in migrations.scripts()]


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def count(url: str, query: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return int(row[0])


def test_a_second_run_finds_nothing_to_do(empty_database_url: str) -> None:
    assert [script.version for script in migrations.pending(empty_database_url)] == ALL
    assert migrations.apply(empty_database_url) == ALL
    assert migrations.apply(empty_database_url) == []
    assert migrations.pending(empty_database_url) == []
    assert migrations.check(empty_database_url).ok


def test_of_many_at_once_exactly_one_applies_each_migration(empty_database_url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        applied = list(pool.map(lambda _: migrations.apply(empty_database_url), range(8)))
    assert sorted(number for numbers in applied for number in numbers) == ALL
    assert migrations.check(empty_database_url).ok


def test_two_schemas_live_side_by_side(empty_database_url: str) -> None:
    for schema in ("outbox", "billing"):
        assert migrations.apply(empty_database_url, schema) == ALL
    execute(empty_database_url, "INSERT INTO billing.event (name, payload) VALUES ('a', '{}')")
    assert count(empty_database_url, "SELECT count(*) FROM billing.event") == 1
    assert count(empty_database_url, "SELECT count(*) FROM outbox.event") == 0
    execute(empty_database_url, "DROP TABLE billing.dead_letter")
    assert migrations.check(empty_database_url, "outbox").ok
    assert not migrations.check(empty_database_url, "billing").ok


@pytest.mark.parametrize("schema", ["outbox", "billing"])
def test_the_printed_script_makes_the_same_schema_and_fails_whole_when_run_again(
    empty_database_url: str, schema: str
) -> None:
    script = migrations.printed(schema)
    execute(empty_database_url, script)
    assert migrations.check(empty_database_url, schema).ok
    assert migrations.apply(empty_database_url, schema) == []
    with pytest.raises(psycopg.errors.UniqueViolation):
        execute(empty_database_url, script)
    assert migrations.check(empty_database_url, schema).ok


def test_a_schema_that_was_prepared_by_an_administrator_needs_no_rights_on_the_database(
    empty_database_url: str, role: str
) -> None:
    execute(empty_database_url, f"CREATE SCHEMA outbox AUTHORIZATION {role}")
    execute(empty_database_url, f"GRANT EXECUTE ON FUNCTION pg_control_system() TO {role}")
    assert migrations.apply(as_role(empty_database_url, role)) == ALL


def test_without_rights_the_error_says_which(empty_database_url: str, role: str) -> None:
    with pytest.raises(SchemaError, match=r"permission denied .* migrate as the schema's owner"):
        migrations.apply(as_role(empty_database_url, role))


def test_every_word_that_postgresql_reserves_is_refused_as_a_schema(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        words = connection.execute("SELECT word FROM pg_get_keywords() WHERE catcode <> 'U'").fetchall()
    assert len(words) > 150
    for (word,) in words:
        with pytest.raises(ConfigurationError):
            migrations.printed(word)


def test_a_failing_migration_leaves_nothing_of_itself(empty_database_url: str) -> None:
    execute(empty_database_url, "CREATE SCHEMA outbox; CREATE TABLE outbox.audit (id int)")
    with pytest.raises(SchemaError, match=r"0001_initial failed.*audit.*already exists"):
        migrations.apply(empty_database_url)
    assert count(empty_database_url, "SELECT count(*) FROM outbox.migration") == 0
    assert count(empty_database_url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'outbox'") == 2


# What the check sees -------------------------------------------------------------------------------------------------


def test_a_database_without_the_schema_is_behind(empty_database_url: str) -> None:
    assert migrations.check(empty_database_url).lines() == [
        f"not applied: {each.title}" for each in migrations.scripts()
    ]


@pytest.mark.parametrize(
    ("change", "report"),
    [
        ("DROP INDEX outbox.event_xid", "missing: index event_xid"),
        ("CREATE INDEX mine ON outbox.handler (last_seen)", "unexpected: index mine"),
        ("ALTER TABLE outbox.tick ALTER count TYPE int", "changed: column tick.count: expected bigint, found integer"),
        (
            "ALTER TABLE outbox.event ALTER key SET DEFAULT 'x'",
            "changed: column event.key: expected text, found text d",
        ),
        ("ALTER TABLE outbox.stream DROP COLUMN seq", "missing: column stream.seq"),
        ("ALTER TABLE outbox.event DISABLE TRIGGER wake_relay", "changed: trigger event.wake_relay"),
        ("ALTER TABLE outbox.event ENABLE REPLICA TRIGGER wake_relay", "changed: trigger event.wake_relay"),
        ("ALTER TABLE outbox.event ENABLE ROW LEVEL SECURITY", "changed: table event"),
        ("CREATE POLICY mine ON outbox.event USING (true)", "unexpected: policy event.mine"),
        ("CREATE RULE mine AS ON INSERT TO outbox.event DO NOTHING", "unexpected: rule event.mine"),
        ("CREATE TYPE outbox.mine AS ENUM ('a')", "unexpected: type mine"),
        ('ALTER TABLE outbox.event ALTER name TYPE text COLLATE "POSIX"', "changed: column event.name"),
        (
            "ALTER TABLE outbox.delivery DROP CONSTRAINT delivery_state_check",
            "missing: constraint delivery.delivery_st",
        ),
        ("ALTER SEQUENCE outbox.event_seq INCREMENT 2", "changed: sequence event_seq"),
        ("ALTER TABLE outbox.relay RESET (fillfactor)", "changed: table relay"),
        ("DROP TABLE outbox.event_default", "missing: table event_default"),
        (
            "CREATE OR REPLACE FUNCTION outbox.wake_relay() RETURNS trigger LANGUAGE plpgsql"
            " AS 'BEGIN RETURN NULL; END'",
            "changed: function wake_relay()",
        ),
        ("UPDATE outbox.migration SET checksum = 'x'", "applied from another text: 0001_initial"),
        ("INSERT INTO outbox.migration VALUES (9999, 'later', '')", "applied by a newer release: 9999"),
    ],
)
def test_a_change_by_hand_is_named(database_url: str, change: str, report: str) -> None:
    execute(database_url, change)
    lines = migrations.check(database_url).lines()
    assert any(line.startswith(report) for line in lines), lines


def test_partitions_that_come_and_go_are_no_drift(database_url: str) -> None:
    execute(database_url, "SELECT outbox.make_partitions('2001-01-01', '2001-01-03')")
    execute(database_url, "DROP TABLE outbox.event_p20010102")
    assert migrations.check(database_url).ok


def test_the_check_leaves_nothing_behind(database_url: str) -> None:
    before = count(database_url, "SELECT count(*) FROM pg_class")
    migrations.check(database_url)
    assert count(database_url, "SELECT count(*) FROM pg_class") == before


def test_the_trigger_can_be_left_out_for_two_phase_commit(empty_database_url: str) -> None:
    migrations.apply(empty_database_url, trigger=False)
    assert migrations.check(empty_database_url, trigger=False).ok
    assert migrations.check(empty_database_url).lines() == ["missing: trigger event.wake_relay"]
    execute(empty_database_url, migrations.printed("printed", trigger=False))
    assert migrations.check(empty_database_url, "printed", trigger=False).ok


# Least privilege -----------------------------------------------------------------------------------------------------


def as_role(url: str, role: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))


@pytest.fixture
def role(empty_database_url: str) -> Iterator[str]:
    """A role that may connect and nothing else."""
    name = f"plain_{uuid.uuid4().hex[:8]}"
    execute(empty_database_url, f"CREATE ROLE {name} LOGIN")
    yield name
    execute(empty_database_url, f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


@pytest.fixture
def roles(database_url: str) -> Iterator[dict[str, str]]:
    """Three fresh roles with the privileges of roles.sql, by their part; one has a name that needs quoting."""
    suffix = uuid.uuid4().hex[:8]
    names = {"writer": f"Shop-{suffix}", "relay": f"relay_{suffix}", "worker": f"worker_{suffix}"}
    with psycopg.connect(database_url, autocommit=True) as owner:
        for name in names.values():
            owner.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
        owner.execute(migrations.roles_sql(**names).encode())
        yield names
        for name in names.values():
            owner.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))


ADD = "INSERT INTO outbox.event (id, name, key, payload, headers) VALUES (gen_random_uuid(), 'a', 'k', '{}', '{}')"
DELIVER = (
    "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
    " VALUES (gen_random_uuid(), 'h', now(), 'done', 1)"
)
LETTER = (
    "INSERT INTO outbox.dead_letter (event_id, handler, event_created_at, name, payload, attempts, error)"
    " VALUES (gen_random_uuid(), 'h', now(), 'a', '{}', 1, 'x')"
)

ALLOWED = {
    "writer": [
        ADD,
        "INSERT INTO outbox.event (name, payload) VALUES ('a', '{}')",
        "INSERT INTO outbox.scheduled (due_at, name, payload) VALUES (now(), 'a', '{}')",
    ],
    "relay": [
        "SELECT * FROM outbox.event",
        "INSERT INTO outbox.tick (id, snapshot) VALUES (9e12, pg_current_snapshot())",
        "UPDATE outbox.tick SET count = 0",
        "DELETE FROM outbox.tick WHERE id = 9e12",
        "UPDATE outbox.relay SET tick = tick, leader = 'x', heartbeat = now()",
        "INSERT INTO outbox.stream VALUES ('a', 1, 1) ON CONFLICT (name) DO UPDATE SET tick = 1",
        "UPDATE outbox.handler SET attached = true, done_tick = 0, done_seq = 0",
        "SELECT setval('outbox.asleep', 1)",
        "LISTEN outbox",
        ADD,
        DELIVER,
    ],
    "worker": [
        "INSERT INTO outbox.handler (name, event_name) VALUES ('h', 'a')"
        " ON CONFLICT (name) DO UPDATE SET event_name = 'a'",
        "SELECT * FROM outbox.event JOIN outbox.delivery ON event_id = id",
        "NOTIFY outbox",
        DELIVER,
        "UPDATE outbox.delivery SET state = 'retrying', due_at = now() WHERE handler = 'h'",
        LETTER,
        "SELECT * FROM outbox.dead_letter FOR UPDATE SKIP LOCKED",
        "DELETE FROM outbox.dead_letter",
        "INSERT INTO outbox.audit (actor, action, detail) VALUES ('me', 'replay', '{}')",
        "SELECT * FROM outbox.relay, outbox.tick, outbox.stream, outbox.migration",
        ADD,
    ],
}

REFUSED = {
    "writer": [
        "SELECT * FROM outbox.event",
        "UPDATE outbox.event SET name = 'b'",
        "DELETE FROM outbox.event",
        "SELECT setval('outbox.asleep', 1)",
        "SELECT * FROM outbox.dead_letter",
        "INSERT INTO outbox.event_default (name, payload) VALUES ('a', '{}')",
        DELIVER,
    ],
    "relay": [
        "UPDATE outbox.event SET name = 'b'",
        "DELETE FROM outbox.event",
        "TRUNCATE outbox.event",
        "UPDATE outbox.delivery SET attempts = 0",
        "DELETE FROM outbox.handler",
        "DELETE FROM outbox.dead_letter",
        LETTER,
    ],
    "worker": [
        "INSERT INTO outbox.tick (id, snapshot) VALUES (1, pg_current_snapshot())",
        "UPDATE outbox.tick SET count = 0",
        "DELETE FROM outbox.tick",
        "UPDATE outbox.relay SET tick = 0",
        "UPDATE outbox.stream SET tick = 0",
        "UPDATE outbox.event SET name = 'b'",
        "DELETE FROM outbox.delivery",
        "UPDATE outbox.audit SET actor = 'x'",
        "SELECT setval('outbox.asleep', 1)",
    ],
}


@pytest.mark.parametrize("part", ["writer", "relay", "worker"])
def test_each_role_can_do_its_part_and_no_more(database_url: str, roles: dict[str, str], part: str) -> None:
    url = as_role(database_url, roles[part])
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in ALLOWED[part]:
            connection.execute(statement.encode())
        for statement in [*REFUSED[part], "CREATE TABLE outbox.mine ()"]:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())


def test_a_writer_wakes_a_sleeping_relay_without_further_rights(database_url: str, roles: dict[str, str]) -> None:
    with psycopg.connect(database_url, autocommit=True) as relay:
        relay.execute("LISTEN outbox")
        relay.execute("SELECT setval('outbox.asleep', extract(epoch FROM now())::bigint + 3600)")
        execute(as_role(database_url, roles["writer"]), ADD)
        assert len(list(relay.notifies(timeout=10, stop_after=1))) == 1


def test_a_role_that_is_not_named_gets_nothing() -> None:
    printed = migrations.roles_sql(relay="r")
    assert '"r"' in printed
    assert "{" not in printed
    assert "outbox.dead_letter" not in printed
