"""The command line on real servers; in a process of its own where that is the subject."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from forking import Programs

from console import main
from console.servers import Postgres, Redis, free_port
from outbox import migrations
from outbox.names import lock_id

Run = Callable[..., subprocess.CompletedProcess[str]]
Db = psycopg.Connection[Any]
UNREACHABLE = "postgresql://app:s3cret@127.0.0.1:1/shop"


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
    return {**kept, "COLUMNS": "200", "LC_ALL": "C.UTF-8", **variables}


@pytest.fixture
def outbox(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], programs: Programs
) -> Run:
    """Runs `outbox` in this process against this test's database; Redis is away unless said otherwise."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        given = {"OUTBOX_DATABASE_URL": database_url, "OUTBOX_REDIS_URL": "redis://127.0.0.1:1/0", **variables}
        if arguments[0] == "upkeep":
            # It sets up its process's logging, which would be the other tests'.
            return programs.run(["-m", "console.main", *arguments], env=environment(**given))
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("OUTBOX_")]:
                patch.delenv(name)
            for name, value in environment(**given).items():
                patch.setenv(name, value)
            # A schema that is given by flag becomes the process's.
            patch.setenv("OUTBOX_SCHEMA", variables.get("OUTBOX_SCHEMA", "outbox"))
            status = main.run(arguments)
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    return run


@pytest.fixture
def db(database_url: str) -> Iterator[Db]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def die(db: Db, handler: str, count: int = 1, error: str = "boom") -> list[str]:
    db.execute(
        "INSERT INTO outbox.handler (name, event_name) VALUES (%s, 'order') ON CONFLICT (name) DO NOTHING", [handler]
    )
    rows = db.execute(
        "WITH added AS (INSERT INTO outbox.event (name, key, payload) SELECT 'order', 'k', '{\"n\": 1}'"
        "  FROM generate_series(1, %(count)s) RETURNING *),"
        " failed AS (INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, error)"
        "  SELECT id, %(handler)s, created_at, 'dead', 10, %(error)s FROM added)"
        " INSERT INTO outbox.dead_letter (event_id, handler, event_created_at, name, key, payload, attempts, error)"
        " SELECT id, %(handler)s, created_at, name, key, payload, 10, %(error)s FROM added RETURNING event_id::text",
        {"handler": handler, "count": count, "error": error},
    ).fetchall()
    return [row[0] for row in rows]


def retrying(db: Db) -> int:
    row = db.execute("SELECT count(*) FROM outbox.delivery WHERE state = 'retrying'").fetchone()
    assert row is not None
    return int(row[0])


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["status"], ["migrate"], ["replay", "--all"], ["dead", "-o", "json"]], ids=" ".join
)
def test_a_server_that_is_away_is_one_line_without_the_password(outbox: Run, command: list[str]) -> None:
    result = outbox(*command, "--database-url", UNREACHABLE)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("outbox: cannot reach PostgreSQL at postgresql://app:***@127.0.0.1:1/shop: ")
    assert result.stderr.count("\n") == 1
    assert "s3cret" not in result.stderr


class Guarded(Postgres):
    """Asks for a password on TCP."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        super().__init__(folder, durable=False, options={"listen_addresses": "127.0.0.1", "port": str(self.port)})

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"{super().url(database, user)}&port={self.port}"

    def prepare(self) -> None:
        super().prepare()
        rules = "local all postgres trust\nhost all app 127.0.0.1/32 scram-sha-256\n"
        (self.data / "pg_hba.conf").write_text(rules)


def test_whoever_is_not_let_in_learns_why_and_shows_no_password(
    scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Guarded(scratch / "guarded") as server:
        with psycopg.connect(server.url(), autocommit=True) as admin:
            admin.execute("CREATE ROLE app LOGIN PASSWORD 's3cret'")
        place = f"127.0.0.1:{server.port}"
        for address, reason in [
            (f"app:wr0ng@{place}/postgres", "password authentication failed"),
            (f"app@{place}/postgres", "no password supplied"),
            (f"other:s3cret@{place}/postgres", "no pg_hba.conf entry"),
            (f"app:s3cret@{place}/nowhere", 'database "nowhere" does not exist'),
        ]:
            for command in (["status"], ["migrate"], ["replay", "--all", "--yes"]):
                assert main.run([*command, "--database-url", f"postgresql://{address}"]) == 1
                out, err = capsys.readouterr()
                assert (out, err.count("\n"), reason in err) == ("", 1, True), err
                assert err.endswith("; check database, user and password in OUTBOX_DATABASE_URL\n")
                assert not any(secret in err for secret in ("wr0ng", "s3cret"))
        # A role that may connect and nothing more.
        assert main.run(["migrate", "--database-url", f"postgresql://app:s3cret@{place}/postgres"]) == 1
        assert "permission denied" in capsys.readouterr().err
        migrations.apply(server.url())
        assert main.run(["dead", "--database-url", f"postgresql://app:s3cret@{place}/postgres"]) == 1
        assert "`outbox migrate --roles-sql` prints what each role needs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("role", "away"),
    [
        (["relay"], {"OUTBOX_DATABASE_URL": UNREACHABLE}),
        (["worker", "idle_tasks:app"], {"OUTBOX_DATABASE_URL": UNREACHABLE}),
        (["relay"], {"OUTBOX_REDIS_URL": "redis://:s3cret@127.0.0.1:1/0"}),
        (["worker", "idle_tasks:app"], {"OUTBOX_REDIS_URL": "redis://:s3cret@127.0.0.1:1/0"}),
    ],
    ids=["relay, no database", "worker, no database", "relay, no Redis", "worker, no Redis"],
)
def test_a_role_whose_server_is_away_says_so_waits_and_still_stops(
    tmp_path: Path, programs: Programs, database_url: str, role: list[str], away: dict[str, str]
) -> None:
    (tmp_path / "idle_tasks.py").write_text("from workers import App\napp = App()\n@app.handler('a')\ndef h(): ...\n")
    servers = {"OUTBOX_DATABASE_URL": database_url, "OUTBOX_REDIS_URL": "redis://127.0.0.1:1/0", **away}
    ours, its = os.pipe()
    with open(ours) as log:
        process = programs.start(["-m", "console.main", *role], cwd=tmp_path, env=environment(**servers), stderr=its)
        os.close(its)
        said = ""
        for line in log:
            said += line
            if '"level": "warning"' in line:
                break
        process.terminate()
        said += log.read()
        assert process.wait(timeout=30) == 0
    assert "127.0.0.1" in said
    assert "refused" in said
    assert "s3cret" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("command", [["status"], ["events"], ["dead"], ["replay", "--all"]], ids=" ".join)
def test_a_missing_schema_says_to_migrate(outbox: Run, command: list[str]) -> None:
    result = outbox(*command, OUTBOX_SCHEMA="elsewhere")
    assert (result.returncode, result.stdout) == (1, "")
    assert "run `outbox migrate`" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_output_that_nobody_reads_to_its_end_is_no_error(outbox: Run, db: Db, database_url: str) -> None:
    die(db, "h", 3000)
    command = f"{sys.executable} -m console.main dead --limit 3000 -o jsonl | head -n 1"
    result = subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        text=True,
        check=True,
        env=environment(OUTBOX_DATABASE_URL=database_url),
    )
    assert json.loads(result.stdout)["handler"] == "h"
    assert result.stderr == ""


# upkeep ---------------------------------------------------------------------------------------------------------------


def test_upkeep_says_what_it_would_do_does_it_and_has_nothing_left_to_do(outbox: Run, db: Db) -> None:
    db.execute("SELECT outbox.make_partitions('2001-01-01', '2001-01-02')")
    would = outbox("upkeep", "--dry-run")
    gone = "event_p20010101, event_p20010102, delivery_p20010101, delivery_p20010102"
    assert (would.returncode, would.stdout, would.stderr) == (0, f"would drop {gone}\n", "")
    facts = json.loads(outbox("upkeep", "--output", "json").stdout)
    assert facts["dropped"] == gone.split(", ")
    assert (facts["dry_run"], facts["rebased"], facts["left"]) == (False, None, [])
    assert outbox("upkeep").stdout == "nothing to do\n"


def test_upkeep_that_something_is_in_the_way_of_exits_3_and_says_what(outbox: Run, db: Db, database_url: str) -> None:
    db.execute("SELECT outbox.make_partitions('2001-01-01', '2001-01-01')")
    with psycopg.connect(database_url) as writer:
        writer.execute("INSERT INTO outbox.event (name, payload) VALUES ('paid', '{}')")
        result = outbox("upkeep")
        assert result.returncode == 3
        assert result.stderr.startswith("left: event_p20010101: ")
    assert outbox("upkeep").returncode == 0


def test_the_retention_is_a_setting(outbox: Run, db: Db) -> None:
    db.execute("SELECT outbox.make_partitions(current_date - 20, current_date - 20)")
    assert outbox("upkeep", OUTBOX_RETENTION="30d").stdout == "nothing to do\n"
    wrong = outbox("upkeep", OUTBOX_RETENTION="0")
    assert (wrong.returncode, "retention" in wrong.stderr) == (2, True)
    assert "drop" in outbox("upkeep").stdout


# migrate -------------------------------------------------------------------------------------------------------------


def test_migrate_applies_checks_and_names_drift(outbox: Run, empty_database_url: str) -> None:
    where = ["--database-url", empty_database_url, "--schema", "billing"]
    titles = [script.title for script in migrations.scripts()]
    dry = outbox("migrate", "--dry-run", *where)
    assert dry.stdout == f"would apply {', '.join(titles)}\n"
    behind = outbox("migrate", "--check", *where)
    assert (behind.returncode, behind.stdout) == (1, "".join(f"not applied: {each}\n" for each in titles))
    first = outbox("migrate", *where)
    assert (first.returncode, first.stderr) == (0, "".join(f"applying {each}\n" for each in titles))
    assert first.stdout == f"schema billing is up to date ({len(titles)} migrations applied)\n"
    assert json.loads(outbox("migrate", "-o", "json", *where).stdout) == {"schema": "billing", "applied": []}
    assert outbox("migrate", "--check", *where).returncode == 0
    with psycopg.connect(empty_database_url, autocommit=True) as owner:
        owner.execute("DROP INDEX billing.event_xid")
    drifted = outbox("migrate", "--check", "-o", "json", *where)
    assert drifted.returncode == 1
    assert "index event_xid" in [found["thing"] for found in json.loads(drifted.stdout)["differences"]]


def test_the_printed_sql_is_what_psql_would_run(outbox: Run, empty_database_url: str) -> None:
    script = outbox("migrate", "--sql", "--without-trigger").stdout
    with psycopg.connect(empty_database_url, autocommit=True) as owner:
        owner.execute(script.encode())
    assert outbox("migrate", "--check", "--without-trigger", "--database-url", empty_database_url).returncode == 0
    assert outbox("migrate", "--check", "--database-url", empty_database_url).returncode == 1


# status --------------------------------------------------------------------------------------------------------------


def test_status_shows_positions_counts_and_streams(outbox: Run, db: Db, redis_server: Redis) -> None:
    import redis

    die(db, "bill", 2)
    db.execute("UPDATE outbox.handler SET done_tick = 0, done_seq = 0")
    with redis.Redis.from_url(redis_server.url) as client:
        client.xadd("outbox:{order}", {"id": "x"}, id="5-1")
        client.xadd("outbox:{order}", {"id": "y"}, id="5-2")
        client.xgroup_create("outbox:{order}", "bill", "0")
        client.xreadgroup("bill", "c", {"outbox:{order}": ">"}, count=1)
    facts = json.loads(outbox("status", "-o", "json", OUTBOX_REDIS_URL=redis_server.url).stdout)
    assert (facts["events"], facts["unpublished"], facts["unpublished_exact"]) == (2, 2, True)
    assert facts["leader"] is None
    (handler,) = facts["handlers"]
    assert (handler["name"], handler["state"], handler["dead"], handler["lag"]) == ("bill", "detached", 2, 0)
    (stream,) = facts["streams"]
    assert stream.pop("lag") in (1, None), "Redis knows it from version 7 on"
    assert stream == {
        "key": "outbox:{order}",
        "length": 2,
        "handler": "bill",
        "pending": 1,
        "consumers": 1,
        "last_delivered": "5-1",
    }
    assert handler["in_flight"] == 1
    table = outbox("status", OUTBOX_REDIS_URL=redis_server.url)
    assert table.returncode == 0
    assert "none leads" in table.stdout
    assert "2 committed, 2 unpublished, the oldest for" in table.stdout
    assert "outbox:{order}" in table.stdout


def test_status_is_content_with_a_redis_that_is_away(outbox: Run) -> None:
    result = outbox("status", "-o", "jsonl")
    assert result.returncode == 0
    facts = json.loads(result.stdout)
    assert facts["streams"] is None
    assert "127.0.0.1:1" in facts["redis_error"]
    assert "redis     away" in outbox("status").stdout


def test_the_health_checks_answer_by_exit_status(outbox: Run, db: Db) -> None:
    assert outbox("status", "--check", "relay").returncode == 1
    db.execute("SELECT pg_advisory_lock(%s)", [lock_id("relay", "outbox")])
    assert outbox("status", "--check", "relay").returncode == 0
    assert outbox("status", "--check", "worker").returncode == 1
    db.execute("INSERT INTO outbox.handler (name, event_name) VALUES ('h', 'a')")
    fine = outbox("status", "--check", "worker")
    assert (fine.returncode, fine.stdout, fine.stderr) == (0, "", "worker: fine\n")


# events, dead, replay ------------------------------------------------------------------------------------------------


def test_events_show_what_became_of_them(outbox: Run, db: Db) -> None:
    (id,) = die(db, "bill")
    found = json.loads(outbox("events", "--name", "order", "--key", "k", "--since", "1h", "-o", "json").stdout)
    assert [event["id"] for event in found] == [id]
    assert found[0]["payload"] == {"n": 1}
    assert found[0]["deliveries"][0]["error"] == "boom"
    assert "bill: dead" in outbox("events", id).stdout
    missing = outbox("events", id, str(uuid.UUID(int=7)))
    assert (missing.returncode, id in missing.stdout) == (3, True)
    assert outbox("events", str(uuid.UUID(int=7))).returncode == 1
    assert outbox("events", "--until", "1h", "-o", "json").stdout == "[]\n"


def test_dead_letters_are_listed_in_every_form(outbox: Run, db: Db) -> None:
    die(db, "bill", 2, error="\x1b[31mboom\nat line 2")
    die(db, "mail")
    table = outbox("dead", "--handler", "bill")
    assert table.stdout.count(" bill ") == 2
    assert " [31mboom at line 2" in table.stdout
    assert "\x1b" not in table.stdout
    assert [letter["handler"] for letter in json.loads(outbox("dead", "-o", "json").stdout)] == ["mail", "bill", "bill"]
    cut = outbox("dead", "--limit", "1", "-o", "jsonl")
    assert (len(cut.stdout.splitlines()), cut.stderr) == (1, "more than 1 fit; see --limit\n")
    none = outbox("dead", "--event", "other")
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "no dead letter fits\n")


def test_dead_letters_that_are_named_show_where_they_failed(outbox: Run, db: Db) -> None:
    (id,) = die(db, "bill", error="ValueError: no")
    trace = 'ValueError: no\n  File "tasks.py", line 7, in bill\n    raise ValueError("\x1b[31mno")'
    db.execute("UPDATE outbox.dead_letter SET traceback = %s", [trace])
    assert json.loads(outbox("dead", "-o", "json").stdout)[0]["traceback"] == trace
    assert "tasks.py" not in outbox("dead").stdout
    shown = outbox("dead", id).stdout
    assert f'{id} at bill\n  ValueError: no\n    File "tasks.py", line 7, in bill\n' in shown
    assert "\x1b" not in shown
    db.execute("UPDATE outbox.dead_letter SET traceback = NULL")
    assert outbox("dead", id).stdout.endswith(f"{id} at bill\n  ValueError: no\n")


def test_a_dry_run_counts_shows_a_sample_and_changes_nothing(outbox: Run, db: Db) -> None:
    die(db, "bill", 12)
    facts = json.loads(outbox("replay", "--all", "--dry-run", "--limit", "11", "-o", "json").stdout)
    assert (facts["asked"], facts["would_replay"], len(facts["sample"])) == (12, 11, 10)
    table = outbox("replay", "--handler", "bill", "--dry-run")
    assert table.stdout.startswith("would put back 12 of 12 dead letters that fit\n")
    assert retrying(db) == 0
    assert db.execute("SELECT count(*) FROM outbox.audit").fetchone() == (0,)


def test_a_replay_puts_back_what_was_asked_for_and_says_who_and_why(outbox: Run, db: Db) -> None:
    die(db, "bill", 5)
    die(db, "mail", 5)
    result = outbox("replay", "--handler", "bill", "--limit", "3", "--reason", "fixed", "--yes")
    assert (result.returncode, result.stdout, result.stderr) == (0, "put back 3 of 3 dead letters\n", "")
    assert retrying(db) == 3
    row = db.execute("SELECT actor, action, reason, detail FROM outbox.audit").fetchone()
    assert row is not None
    assert "@" in row[0]
    assert row[1:3] == ("replay", "fixed")
    assert (row[3]["filter"], row[3]["count"]) == ({"handler": "bill"}, 3)
    assert json.loads(outbox("replay", "--all", "--yes", "-o", "json").stdout)["replayed"] == 7


def test_ids_without_a_dead_letter_are_named(outbox: Run, db: Db) -> None:
    (id,) = die(db, "bill")
    absent = str(uuid.UUID(int=7))
    partly = outbox("replay", id, absent, "--yes")
    assert (partly.returncode, partly.stdout) == (3, "put back 1 of 1 dead letter\n")
    assert partly.stderr == f"no dead letter that fits has the id {absent}\n"
    assert retrying(db) == 1
    assert outbox("replay", id).returncode == 1


def test_on_a_terminal_a_replay_asks_and_shows_its_progress(programs: Programs, db: Db, database_url: str) -> None:
    die(db, "bill", 3)
    for answer, expected in (("n\n", 0), ("y\n", 3)):
        ours, theirs = pty.openpty()
        process = programs.start(
            ["-m", "console.main", "replay", "--handler", "bill"],
            stdin=theirs, stderr=theirs, env=environment(OUTBOX_DATABASE_URL=database_url),
        )  # fmt: skip
        os.close(theirs)
        seen = b""
        while b"Run 3 dead letters again?" not in seen:
            seen += os.read(ours, 1024)
        assert b"counting what fits" in seen
        os.write(ours, answer.encode())
        shown = read_all(ours)
        assert process.wait(timeout=60) == (0 if expected else 1)
        assert retrying(db) == expected
        # How much of it is done, and the time that is left.
        assert (re.search(rb"3/3.*\d:\d\d:\d\d", shown) is not None) == bool(expected)


def read_all(descriptor: int) -> bytes:
    """What a terminal still says until the program at its other end has gone."""
    said = b""
    try:
        while part := os.read(descriptor, 4096):
            said += part
    except OSError:
        pass
    os.close(descriptor)
    return said
