"""PostgreSQL that crashes with commits it has not flushed, prepared transactions, times of commits, and a standby."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from console.servers import Postgres
from outbox import admin, migrations
from outbox.settings import Settings

OPTIONS = {
    "max_prepared_transactions": "5",
    "track_commit_timestamp": "on",
    "wal_level": "replica",
    "wal_writer_delay": "10s",
}


def make_server(folder: Path) -> Postgres:
    wanted = os.environ.get("OUTBOX_TEST_POSTGRES", "18")
    place: dict[str, Any] = {"version": int(wanted)} if wanted.isdigit() else {"bin_dir": Path(wanted)}
    return Postgres(folder, durable=False, options=OPTIONS, **place)


@pytest.fixture(scope="module")
def server(scratch: Path) -> Iterator[Postgres]:
    """A PostgreSQL that these tests may kill, in place of the shared one."""
    with make_server(scratch / f"pg-{uuid.uuid4().hex[:8]}") as server:
        yield server
    shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
def database_url(server: Postgres) -> str:
    server.start()
    name = f"outbox_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    migrations.apply(server.url(name))
    return server.url(name)


def reconnect(box: Any) -> None:
    box.sql = psycopg.connect(box.settings.libpq_url(), autocommit=True)


def crash(server: Postgres, box: Any) -> None:
    """Kill it before it writes what it has not flushed, and start it again."""
    writers = box.sql.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'").fetchall()
    for (pid,) in writers:
        os.kill(pid, signal.SIGSTOP)
    server.kill()
    for (pid,) in writers:
        os.kill(pid, signal.SIGKILL)
    server.start()
    reconnect(box)


def say(box: Any, word: str, times: int = 1) -> list[int]:
    """Events that are committed without waiting for the disk; their seqs."""
    with psycopg.connect(box.settings.libpq_url()) as writer:
        writer.execute("SET synchronous_commit = off")
        rows = writer.execute(
            "INSERT INTO outbox.event (name, payload) SELECT 'paid', to_json(%s::text) FROM generate_series(1, %s)"
            " RETURNING seq",
            [word, times],
        ).fetchall()
    return [row[0] for row in rows]


def words(box: Any) -> list[str]:
    return [fields[b"payload"].decode().strip('"') for _, fields in box.entries("paid")]


def test_an_event_that_a_crash_took_back_was_not_published_and_one_that_was_published_stays(
    server: Postgres, box: Any, start_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    relay = start_relay()
    box.subscribe("send", event="paid")
    say(box, "published")
    wait_for(lambda: words(box) == ["published"], "the published event")
    relay.pause()
    # One more than the numbers that a sequence takes from the log at a time: the new ones are noted last, on a page of
    # the log that is not full yet and not written before time.
    taken_back = say(box, "taken back", 33)
    crash(server, box)
    relay.resume()
    [again] = say(box, "said instead")
    # Without this the crash took nothing and this test shows nothing.
    assert again in taken_back, "the sequence did not give a number out again"
    wait_for(lambda: len(words(box)) == 2, "the next event")
    assert words(box) == ["published", "said instead"]
    known = box.sql.execute("SELECT payload #>> '{}' FROM outbox.event ORDER BY seq").fetchall()
    assert [row[0] for row in known] == words(box)
    assert box.work_until("paid", "send", [0, again])[-1] == again


def test_a_prepared_transaction_delays_only_its_own_events_also_over_a_crash(
    server: Postgres, box: Any, start_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    start_relay()
    box.subscribe("send", event="paid")
    # A transaction that notified cannot be prepared.
    box.sql.execute("DROP TRIGGER wake_relay ON outbox.event")
    box.sql.execute("BEGIN")
    [prepared] = box.add("paid")
    box.sql.execute("PREPARE TRANSACTION 'sale'")
    other = box.add("paid", 2)
    box.await_seqs(other, "paid")
    crash(server, box)
    later = box.add("paid", 2)
    box.await_seqs(other + later, "paid")
    box.sql.execute("COMMIT PREPARED 'sale'")
    box.await_seqs([*other, *later, prepared], "paid")
    given = box.work_until("paid", "send", [*other, *later, prepared])
    assert given == [*other, *later, prepared]
    last = box.entries("paid")[-1][0]
    wait_for(lambda: box.handler("send")[1] >= last, "done_to")


def test_a_transaction_held_open_in_another_database_delays_nothing(
    server: Postgres, box: Any, run_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    with psycopg.connect(server.url()) as bystander, run_relay():
        bystander.execute("SELECT pg_current_xact_id()")
        box.subscribe("send", event="paid")
        seqs = box.add("paid", 3)
        assert box.work_until("paid", "send", seqs) == seqs
        last = box.entries("paid")[-1][0]
        wait_for(lambda: box.handler("send")[1] >= last, "done_to")


def test_where_the_server_keeps_times_of_commits_a_time_line_has_that_of_the_event(database_url: str) -> None:
    clock = "SELECT clock_timestamp()"
    with psycopg.connect(database_url) as writer, psycopg.connect(database_url, autocommit=True) as other:
        insert = "INSERT INTO outbox.event (name, payload) VALUES ('paid', '{}') RETURNING id, created_at"
        [(id, added)] = writer.execute(insert).fetchall()
        [(before,)] = other.execute(clock).fetchall()
        writer.commit()
        [(after,)] = other.execute(clock).fetchall()
        first, committed, *_ = admin.story(other, id).moments
    assert (first.what, first.at, committed.what, committed.detail) == ("added", added, "committed", None)
    assert committed.at is not None
    assert added < before <= committed.at <= after


def test_a_streaming_standby_is_refused_and_serves_once_it_is_promoted(
    server: Postgres,
    scratch: Path,
    box: Any,
    settings: Settings,
    start_relay: Callable[..., Any],
    wait_for: Callable[..., Any],
) -> None:
    copy = make_server(scratch / f"pg-{uuid.uuid4().hex[:8]}")
    copy.folder.mkdir()
    user, group = copy.account
    if user is not None and group is not None:
        os.chown(copy.folder, user, group)
    subprocess.run(
        [server.bin / "pg_basebackup", "-D", copy.data, "-d", server.url(), "-R", "--checkpoint=fast", "--no-sync"],
        check=True, capture_output=True, cwd="/", user=user, group=group,
    )  # fmt: skip
    name = box.one("SELECT current_database()")
    with copy:
        there = settings.model_copy(update={"database_url": SecretStr(copy.url(name))})
        refused = start_relay(there)
        assert refused.popen.wait(timeout=60) == 1
        assert "is a standby" in refused.output()
        with psycopg.connect(copy.url(name), autocommit=True) as standby:
            standby.execute("SELECT pg_promote()")
        start_relay(there).await_line("relay.leading")
    shutil.rmtree(copy.folder, ignore_errors=True)
