"""A database that was restored from a logical dump on another server, where transaction ids begin anew."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from forking import Programs
from pydantic import SecretStr

from console.servers import Postgres
from outbox import migrations
from outbox.errors import PrefixTakenError, UnusableError
from outbox.settings import Settings
from relay import lead, prefix, rebase


@pytest.fixture(scope="module")
def elsewhere(scratch: Path) -> Iterator[Postgres]:
    """A new server, of the version that the others have."""
    wanted = os.environ.get("OUTBOX_TEST_POSTGRES", "18")
    folder = scratch / f"elsewhere-{uuid.uuid4().hex[:8]}"
    place: dict[str, Any] = {"version": int(wanted)} if wanted.isdigit() else {"bin_dir": Path(wanted)}
    with Postgres(folder, durable=False, **place) as server:
        yield server
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def restore(elsewhere: Postgres, settings: Settings, tmp_path: Path) -> Callable[[], Settings]:
    """Dump this test's database and restore it under its name on the other server; the settings for it there."""

    def run(program: str, *arguments: str) -> None:
        done = subprocess.run([elsewhere.bin / program, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def move() -> Settings:
        name = urlsplit(settings.libpq_url()).path[1:]
        target = elsewhere.url(name)
        with psycopg.connect(elsewhere.url(), autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}".encode())
        run("pg_dump", "--format=custom", f"--file={tmp_path / 'dump'}", settings.libpq_url())
        run("pg_restore", "--exit-on-error", f"--dbname={target}", str(tmp_path / "dump"))
        return settings.model_copy(update={"database_url": SecretStr(target)})

    return move


def burn(connection: Any, count: int) -> None:
    """Use up transaction ids."""
    connection.execute(
        f"DO $$ BEGIN FOR n IN 1..{count} LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$".encode()
    )


def forget_leader(box: Any) -> None:
    """Some time has passed since the last relay led."""
    box.redis.delete("outbox:leader")


def test_what_was_finished_is_not_run_again_and_everything_else_is(
    box: Any, run_relay: Callable[..., Any], restore: Callable[[], Settings], wait_for: Callable[..., Any]
) -> None:
    burn(box.sql, 20_000)
    with run_relay():
        box.subscribe("send", "bill", event="paid")
        finished = box.add("paid", 5)
        assert box.work_until("paid", "send", finished) == finished
        half = box.add("paid", 3)
        box.await_seqs([*finished, *half], "paid")
        wait_for(lambda: box.handler("send")[1].seq >= finished[-1], "done_to")
        # It begins here: nothing of what was before is for it.
        box.subscribe("late", event="paid")
        shared = box.add("paid", 2)
        assert sorted(box.work_until("paid", "send", half + shared)) == half + shared
        box.add("lonely", 2)
    waiting = box.add("paid", 4)
    there = type(box)(restore())
    try:
        behind = there.one("SELECT max(seq) FROM outbox.event")
        new = there.add("paid", 2)
        assert new[0] > behind
        assert there.one("SELECT pg_current_xact_id()::text::bigint") < box.one(
            "SELECT max(xid::text::bigint) FROM outbox.event"
        )
        forget_leader(box)
        with run_relay(there.settings):
            assert there.work_until("paid", "send", waiting + new) == waiting + new
            assert there.work_until("paid", "bill", finished + half + shared + waiting + new) == (
                finished + half + shared + waiting + new
            )
            assert there.work_until("paid", "late", shared + waiting + new) == shared + waiting + new
            there.await_attached("send", "bill", "late")
            last = there.add("paid", 3)
            for handler in ("send", "bill", "late"):
                assert there.work_until("paid", handler, last) == last
                wait_for(lambda handler=handler: there.handler(handler)[1].seq >= last[-1], "done_to")  # type: ignore[misc]
            # Nothing looks new for ever.
            wait_for(lambda: there.asleep_until() > 0, "the relay's sleep")
            ticks = there.ticks()
            there.register("first", event="lonely")
            assert len(there.work_until("lonely", "first", [0, 0])) == 2
            assert there.ticks() == ticks
        assert there.one("SELECT count(*) FROM outbox.delivery WHERE state = 'retrying'") == 0
    finally:
        there.close()


def test_a_counter_behind_the_ticks_is_noticed_on_the_same_server(
    box: Any, run_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    with run_relay():
        box.subscribe("send", event="paid")
        done = box.add("paid", 2)
        assert box.work_until("paid", "send", done) == done
        wait_for(lambda: box.handler("send")[1].seq >= done[-1], "done_to")
    box.sql.execute(
        "UPDATE outbox.tick SET snapshot = '900000000000:900000000000:' WHERE id = (SELECT max(id) FROM outbox.tick)"
    )
    box.sql.execute("UPDATE outbox.event SET xid = '899999999999'")
    waiting = box.add("paid", 2)
    with run_relay():
        assert box.work_until("paid", "send", waiting) == waiting
        box.await_attached("send")
    with lead.connect(box.settings.libpq_url(), "outbox") as connection:
        assert rebase.check(connection, "outbox") is None


def test_an_upgrade_that_keeps_transaction_ids_needs_nothing_and_repeats_nothing(
    box: Any, run_relay: Callable[..., Any]
) -> None:
    with run_relay():
        box.subscribe("send", event="paid")
        done = box.add("paid", 2)
        assert box.work_until("paid", "send", done) == done
    name = urlsplit(box.settings.libpq_url()).path[1:]
    box.sql.execute("UPDATE outbox.relay SET system_identifier = '1'")
    box.redis.set("outbox:owner", f"1/{name}/outbox")
    forget_leader(box)
    waiting = box.add("paid", 2)
    with run_relay():
        assert box.work_until("paid", "send", waiting) == waiting
        box.await_attached("send")
    assert box.one("SELECT system_identifier FROM outbox.relay") != "1"
    assert not box.redis.get("outbox:owner").startswith(b"1/")


@pytest.mark.parametrize("sign", ["its relay leads", "it went on publishing"])
def test_a_copy_of_a_database_that_is_in_use_does_not_take_its_redis_over(
    box: Any,
    run_relay: Callable[..., Any],
    wait_for: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    sign: str,
) -> None:
    with run_relay():
        box.subscribe("send", event="paid")
        box.await_seqs(box.add("paid"), "paid")
    monkeypatch.setattr(prefix, "LEADER_SEEN_FOR", 0.0)
    name = urlsplit(box.settings.libpq_url()).path[1:]
    former = f"1/{name}/outbox"
    box.sql.execute("UPDATE outbox.relay SET system_identifier = '1'")
    box.redis.set("outbox:owner", former)
    if sign == "its relay leads":
        box.redis.set("outbox:leader", former)
    else:
        forget_leader(box)
        box.redis.xadd("outbox:{paid}", {"name": "paid"}, id="99999999999999-1")
    with pytest.raises(PrefixTakenError, match="OUTBOX_PREFIX"), run_relay() as relay:
        wait_for(lambda: relay.error, "its end")
    assert box.redis.get("outbox:owner") == former.encode()
    elsewhere = box.settings.model_copy(update={"prefix": "copy"})
    with run_relay(elsewhere):
        wait_for(lambda: box.redis.xlen("copy:{paid}:send") == 1, "the unfinished event")


def test_events_added_before_the_rebase_under_numbers_that_were_given_out_already_keep_apart(
    box: Any, run_relay: Callable[..., Any]
) -> None:
    """A table that was copied without its sequence."""
    box.sql.execute(
        "INSERT INTO outbox.handler (name, event_name, done_tick, done_seq, fed_tick, fed_seq)"
        " VALUES ('send', 'paid', 0, 0, 0, 0)"
    )
    box.add("paid", 3)
    box.sql.execute("UPDATE outbox.event SET seq = seq + 5, xid = '899999999999'")
    box.sql.execute("UPDATE outbox.tick SET snapshot = '900000000000:900000000000:'")
    box.add("paid", 6)
    with psycopg.connect(box.settings.libpq_url()) as open_writer:
        open_writer.execute("INSERT INTO outbox.event (name, payload) VALUES ('paid', '{\"n\": 10}')")
        with run_relay():
            given = box.work_until("paid", "send", [0] * 9)
            assert len(set(given)) == 9
            open_writer.commit()
            assert len(box.work_until("paid", "send", [0])) == 1
    assert box.one("SELECT count(*), count(DISTINCT seq) FROM outbox.event") == (10, 10)
    order = box.sql.execute("SELECT created_at FROM outbox.event ORDER BY xid, seq").fetchall()
    assert order[1:] == sorted(order[1:])


def test_a_relay_that_may_not_change_events_says_who_can_and_upkeep_by_the_owner_does_it(
    programs: Programs, box: Any, run_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    role = f"relay_{uuid.uuid4().hex[:8]}"
    box.sql.execute(f"CREATE ROLE {role} LOGIN".encode())
    try:
        box.sql.execute(migrations.roles_sql(relay=role).encode())
        box.sql.execute("UPDATE outbox.relay SET system_identifier = '1'")
        box.add("paid", 2)
        parts = urlsplit(box.settings.libpq_url())
        url = urlunsplit(parts._replace(netloc=f"{role}@"))
        limited = box.settings.model_copy(update={"database_url": SecretStr(url)})
        with pytest.raises(UnusableError, match="`outbox upkeep`"), run_relay(limited) as relay:
            wait_for(lambda: relay.error, "its end")
        result = programs.run(
            ["-m", "console.main", "upkeep", "-o", "json"],
            env=os.environ | {"OUTBOX_DATABASE_URL": box.settings.libpq_url()},
        )
        assert json.loads(result.stdout)["rebased"] == 0
        with run_relay(limited):
            box.register("send", event="paid")
            assert len(box.work_until("paid", "send", [0, 0])) == 2
    finally:
        box.sql.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", [role])
        box.sql.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())
