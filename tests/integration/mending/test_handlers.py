"""Forgetting and renaming handlers, beside a relay that leads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import redis

from console.servers import Redis
from outbox import admin
from outbox.errors import InUseError
from outbox.settings import Settings
from tests.integration.mending.conftest import Result, add, audits, bury, deliver, register
from tests.integration.relay.conftest import Box, Thread, wait_for

Db = psycopg.Connection[Any]
Run = Callable[..., Result]


@pytest.fixture
def box(settings: Settings) -> Iterator[Box]:
    made = Box(settings)
    yield made
    made.close()


@pytest.fixture
def served(outbox: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Commands with this test's Redis."""
    monkeypatch.setenv("OUTBOX_REDIS_URL", settings.redis_url.get_secret_value())
    return outbox


def groups(box: Box, name: str) -> list[str]:
    return sorted(group["name"].decode() for group in box.redis.xinfo_groups(f"outbox:{{{name}}}"))


def test_a_forgotten_handler_leaves_nothing_and_its_sibling_notices_nothing(served: Run, box: Box, db: Db) -> None:
    with Thread(box.settings):
        box.subscribe("gone", "stays", event="a")
        first = box.add("a", 3)
        box.await_seqs(first, "a")
        ids = [row[0] for row in db.execute("SELECT id::text FROM outbox.event ORDER BY seq")]
        deliver(db, "gone", "retrying", ids[0])
        bury(db, "gone", ids[1])
        admin.pause(db, "handler", "gone")
        done = served("forget", "gone", "--reason", "replaced", "--yes")
        assert done.status == 0
        assert done.out.endswith("forgot gone of a; 1 retries are cancelled, 1 dead letters stay\n")
        assert groups(box, "a") == ["stays"]
        assert box.one("SELECT count(*) FROM outbox.handler WHERE name = 'gone'") == 0
        assert dict(db.execute("SELECT event_id::text, state FROM outbox.delivery").fetchall()) == {
            ids[0]: "cancelled",
            ids[1]: "dead",
        }
        assert (admin.holds(db), len(admin.dead_letters(db))) == ([], 1)
        # Nobody waits for it any more: what its sibling has done is trimmed.
        second = box.add("a", 2)
        assert box.work_until("a", "stays", first + second) == first + second
        wait_for(lambda: box.seqs("a") == [], "the stream trimmed")
        assert audits(db)[-1] == ("forget", "replaced", {"handler": "gone", "letters": False})


def test_dead_letters_of_a_forgotten_handler_are_not_put_back_and_that_is_said(
    outbox: Run, served: Run, db: Db
) -> None:
    register(db, "gone", "stays")
    ids = add(db, 3)
    bury(db, "gone", *ids[:2])
    bury(db, "stays", ids[2])
    assert served("forget", "gone", "--yes").status == 0
    shown = outbox("replay", "--all", "--dry-run", "-o", "json")
    assert (shown.json["would_replay"], shown.json["orphans"]) == (1, {"gone": 2})
    done = outbox("replay", "--all", "--yes")
    assert (done.status, done.out) == (3, "put back 1 of 1 dead letter\n")
    assert done.err.startswith("2 dead letters of gone are left: no worker has announced that handler.")
    assert "outbox discard --handler gone" in done.err
    alone = outbox("replay", ids[0], "--edit", "payload.n=1", "--yes")
    assert (alone.status, alone.out) == (1, "put back 0 of 0 dead letters\n")
    rows = db.execute("SELECT handler FROM outbox.delivery WHERE state = 'retrying'").fetchall()
    assert (rows, len(admin.dead_letters(db))) == ([("stays",)], 2)
    # A worker that has it again makes them its own.
    register(db, "gone")
    assert outbox("replay", "--all", "--yes").status == 0
    assert admin.dead_letters(db) == []


def test_retries_that_a_forgotten_handler_has_are_cancelled_by_forgetting_it_again(served: Run, db: Db) -> None:
    register(db, "bill")
    ids = add(db, 2)
    deliver(db, "gone", "retrying", *ids)
    deliver(db, "bill", "retrying", *ids)
    assert served("rename", "gone", "g", "--yes").status == 1
    done = served("forget", "gone", "--yes")
    assert (done.status, done.out.partition(",")[0]) == (0, "forgot gone of order; 2 retries are cancelled")
    rows = db.execute("SELECT DISTINCT handler, state FROM outbox.delivery ORDER BY 1").fetchall()
    assert rows == [("bill", "retrying"), ("gone", "cancelled")]
    assert served("forget", "gone", "--yes").status == 1


def test_forgetting_that_redis_refuses_changes_nothing_and_can_be_done_again(
    served: Run, db: Db, redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(db, "gone", event="a")
    client = redis.Redis.from_url(redis_server.url)
    client.xgroup_create("outbox:{a}", "gone", "0", mkstream=True)
    client.xadd("outbox:{a}:gone", {"a": "b"})
    client.execute_command("ACL SETUSER few on >secret ~* +@all -del")
    monkeypatch.setenv("OUTBOX_REDIS_URL", redis_server.url.replace("//", "//few:secret@"))
    refused = served("forget", "gone", "--yes")
    assert (refused.status, "Traceback" in refused.err) == (1, False)
    assert (db.execute("SELECT name FROM outbox.handler").fetchall(), audits(db)) == ([("gone",)], [])
    # Its group went before that: what was done there is done, and the rest follows.
    monkeypatch.setenv("OUTBOX_REDIS_URL", redis_server.url)
    assert served("forget", "gone", "--yes").status == 0
    assert (client.exists("outbox:{a}:gone"), client.xinfo_groups("outbox:{a}")) == (0, [])
    assert db.execute("SELECT FROM outbox.handler").fetchall() == []


def test_what_was_being_fed_to_a_forgotten_handler_does_not_come_back(served: Run, box: Box, db: Db) -> None:
    box.add("a", 5)
    box.register("gone", event="a")
    with Thread(box.settings):
        wait_for(lambda: box.redis.exists("outbox:{a}:gone"), "its catch-up stream")
        bury(db, "gone", add(db, event="a")[0])
        assert served("forget", "gone", "--letters", "--yes").status == 0
        assert box.redis.exists("outbox:{a}:gone") == 0
        assert box.redis.xlen("outbox:{a}") == 0
        assert admin.dead_letters(db) == []


def test_a_renamed_handler_goes_on_where_it_was(served: Run, box: Box, db: Db) -> None:
    with Thread(box.settings):
        box.subscribe("old", event="a")
        seqs = box.add("a", 6)
        box.await_seqs(seqs, "a")
        entries = box.read("a", "old")
        box.finish("old", entries[:1] + entries[3:4])
        ids = [row[0] for row in db.execute("SELECT id::text FROM outbox.event ORDER BY seq")]
        bury(db, "old", ids[5])
        assert served("rename", "old", "new", "--reason", "clearer", "--yes").out.endswith("renamed old of a to new\n")
        # A worker with the new name finds the handler and gets what has no outcome.
        db.execute("UPDATE outbox.handler SET last_seen = now() WHERE name = 'new' AND event_name = 'a'")
        left = [seqs[1], seqs[2], seqs[4]]
        assert box.work_until("a", "new", left) == left
        box.await_attached("new")
        assert groups(box, "a") == ["new"]
        assert [letter.handler for letter in admin.dead_letters(db)] == ["new"]
        assert box.one("SELECT count(*) FROM outbox.delivery WHERE handler = 'new'") == 6
        assert audits(db)[-1] == ("rename", "clearer", {"handler": "old", "new": "new"})


def test_who_is_served_is_neither_forgotten_nor_renamed(served: Run, settings: Settings, db: Db) -> None:
    register(db, "bill", "ship")
    db.execute("INSERT INTO outbox.worker (name, handlers) VALUES ('w', '{bill}')")
    with pytest.raises(InUseError):
        admin.forget(settings, "bill")
    refused = served("rename", "bill", "send_invoice", "--yes")
    assert (refused.status, "a worker serves handler 'bill'" in refused.err) == (1, True)
    assert served("forget", "ship", "--yes").status == 0
    db.execute("UPDATE outbox.worker SET seen_at = now() - interval '31 seconds'")
    assert served("forget", "bill", "--yes").status == 0


def test_a_name_that_is_taken_unknown_or_no_name_is_refused(served: Run, db: Db) -> None:
    register(db, "bill", "mail")
    assert "known already" in served("rename", "bill", "mail", "--yes").err
    deliver(db, "former", "done", *add(db))
    deliver(db, "bill", "done", *(row[0] for row in db.execute("SELECT id::text FROM outbox.event")))
    assert "known already" in served("rename", "bill", "former", "--yes").err
    assert served("rename", "bill", "send invoice", "--yes").status == 2
    assert served("rename", "bil", "send_invoice", "--yes").status == 1
    assert served("forget", "bil", "--yes").status == 1
    assert {row[0] for row in db.execute("SELECT name FROM outbox.handler")} == {"bill", "mail"}


def test_without_redis_or_a_yes_nothing_is_changed(outbox: Run, served: Run, db: Db, monkeypatch: Any) -> None:
    register(db, "bill")
    assert served("forget", "bill", "--dry-run").out.startswith("would forget bill of order; ")
    assert served("rename", "bill", "b", "--dry-run").out == "would rename bill of order to b\n"
    assert served("forget", "bill").status == 2
    monkeypatch.setenv("OUTBOX_REDIS_URL", "redis://127.0.0.1:1/0")
    away = outbox("forget", "bill", "--yes")
    assert (away.status, "127.0.0.1:1" in away.err) == (1, True)
    assert (db.execute("SELECT name FROM outbox.handler").fetchall(), audits(db)) == ([("bill",)], [])
