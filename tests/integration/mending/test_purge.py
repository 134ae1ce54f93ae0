"""Purging: the content is nowhere any more, nothing else is touched, and the log goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from outbox import admin
from outbox.admin import Edit, Outcome, Selection
from outbox.settings import Settings
from tests.integration.mending.conftest import Result, audits, bury, deliver, register
from tests.integration.relay.conftest import Box, Thread, wait_for

Db = psycopg.Connection[Any]
Run = Callable[..., Result]
SECRET = "ada@shop.example"
TABLES = ["event", "delivery", "dead_letter", "scheduled", "audit", "replay", "tombstone", "hold", "handler", "stream"]


@pytest.fixture
def box(settings: Settings) -> Iterator[Box]:
    made = Box(settings)
    yield made
    made.close()


@pytest.fixture
def served(outbox: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("OUTBOX_REDIS_URL", settings.redis_url.get_secret_value())
    return outbox


def add(db: Db, name: str, key: str | None, **payload: Any) -> str:
    (row,) = db.execute(
        "INSERT INTO outbox.event (name, key, payload, headers) VALUES (%s, %s, %s, %s) RETURNING id::text",
        [name, key, json.dumps(payload), json.dumps({"correlation_id": f"of {key}"})],
    )
    return str(row[0])


def rows(db: Db) -> dict[str, list[str]]:
    """Every row of every table, as text."""
    return {
        table: [row[0] for row in db.execute(f"SELECT t::text FROM outbox.{table} AS t ORDER BY 1".encode())]
        for table in TABLES
    }


def held_in_redis(box: Box) -> str:
    return "".join(str(box.redis.xrange(key)) for key in box.redis.keys("outbox:{*"))


def test_the_content_is_nowhere_any_more_and_nothing_else_is_touched(served: Run, box: Box, db: Db) -> None:
    with Thread(box.settings):
        box.subscribe("bill", "mail", event="a")
        ids = {n: add(db, "a", SECRET if n % 2 else "bob", n=n, mail=SECRET if n % 2 else "bob") for n in range(8)}
        wait_for(lambda: len(box.entries("a")) == 8, "eight entries")
        deliver(db, "bill", "done", ids[0], ids[1])
        bury(db, "bill", ids[2], error="bob refused")
        bury(db, "bill", ids[3], error=f"{SECRET} refused")
        deliver(db, "mail", "retrying", ids[3], error=f"{SECRET} is away")
        deliver(db, "mail", "retrying", ids[5], lease="1 minute", error=f"{SECRET} is away")
        deliver(db, "mail", "retrying", ids[4], lease="1 minute", error="bob is away")
        db.execute(
            "UPDATE outbox.delivery AS d SET result = json_build_object('sent_to', e.payload->>'mail')"
            "  FROM outbox.event AS e WHERE e.id = d.event_id AND d.state = 'done'"
        )
        # Its event went with the partition long ago.
        gone = add(db, "b", SECRET, mail=SECRET)
        bury(db, "bill", gone)
        db.execute("UPDATE outbox.delivery SET result = to_json(%s::text) WHERE event_id = %s", [SECRET, gone])
        db.execute("DELETE FROM outbox.event WHERE id = %s", [gone])
        for key in (SECRET, "bob"):
            db.execute(
                "INSERT INTO outbox.scheduled (due_at, name, key, payload) VALUES (now() + '1 day', 'a', %s, 'null')",
                [key],
            )
        # An edited copy, and an audit row that says whose.
        edit = Edit.parse(["payload.again=1"])
        admin.replay(db, Selection(key=SECRET, handler="bill"), outcome=Outcome.DONE, edit=edit)
        before = rows(db)
        assert SECRET in str(before["audit"])
        assert SECRET in held_in_redis(box)

        dry = served("purge", "--key", SECRET, "--reason", "request 7", "--dry-run").said
        assert dry == "would purge 5 events, 2 dead letters, 1 scheduled events"
        assert rows(db) == before
        done = served("purge", "--key", SECRET, "--reason", "request 7", "--yes")
        assert done.said == "purged 5 events, 2 dead letters, 1 scheduled events, 4 stream entries"

        after = rows(db)
        assert SECRET not in str(after)
        assert SECRET not in held_in_redis(box)
        for table in ("event", "delivery", "dead_letter", "scheduled"):
            assert [row for row in after[table] if "bob" in row] == [row for row in before[table] if "bob" in row]
        # Where the events are in the log is as it was.
        assert db.execute("SELECT count(*), count(DISTINCT seq) FROM outbox.event").fetchone() == (9, 9)
        states = db.execute(
            "SELECT handler, state, count(*) FROM outbox.delivery AS d JOIN outbox.tombstone AS t USING (event_id)"
            " GROUP BY 1, 2 ORDER BY 1, 2"
        ).fetchall()
        assert states == [("bill", "cancelled", 3), ("bill", "dead", 2), ("bill", "done", 1), ("mail", "cancelled", 4)]
        action, reason, detail = audits(db)[-1]
        assert (action, reason) == ("purge", "request 7")
        assert detail == {"by": ["key"], "events": 5, "letters": 2, "scheduled": 1}

        # It can be neither run nor replayed, also by a handler that wants all there is.
        for outcome in Outcome:
            found = [
                candidate.event_id for candidate in admin.candidates(db, Selection(), outcome=outcome, limit=99).sample
            ]
            assert not {*found} & {ids[1], ids[3], ids[5], ids[7], gone}
        db.execute("INSERT INTO outbox.handler (name, event_name, start_at) VALUES ('index', 'a', '-infinity')")
        left = [row[0] for row in db.execute("SELECT seq FROM outbox.event WHERE key = 'bob' ORDER BY seq")]
        assert box.work_until("a", "index", left) == left
        # And the log goes on: done_to passes the tombstones, new events come through.
        (fresh,) = box.add("a")
        box.work_until("a", "index", [fresh])
        wait_for(lambda: box.handler("index")[1].seq >= fresh, "done_to behind all of it")


def test_a_payload_field_says_whose_it_is_too_and_a_second_purge_finds_nothing(served: Run, db: Db) -> None:
    one, other = add(db, "a", None, user={"id": 7}), add(db, "a", None, user={"id": 8})
    assert served("purge", "--where", "payload.user.id=7", "--reason", "x", "--yes", "-o", "json").json["events"] == 1
    names = dict(db.execute("SELECT id::text, name FROM outbox.event").fetchall())
    assert names == {one: "(purged)", other: "a"}
    again = served("purge", "--where", "payload.user.id=7", "--reason", "x", "--yes")
    assert (again.status, again.err) == (0, "nothing fits\n")
    assert "(purged)" in served("events", one).out
    replayed = served("replay", one, "--yes")
    assert (replayed.status, f"event {one} was purged at 2" in replayed.err) == (1, True)


def test_an_interrupted_purge_is_finished_by_the_next(
    served: Run, settings: Settings, box: Box, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.admin.purging.BATCH", 2)
    ids = [add(db, "a", SECRET, n=n) for n in range(5)]
    bury(db, "bill", *ids)
    for id in ids:
        box.redis.xadd("outbox:{a}", {"id": id, "payload": SECRET})

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        admin.purge(settings, Selection(key=SECRET), reason="x", progress=interrupt)
    assert served("purge", "--key", SECRET, "--reason", "x", "--yes", "-o", "json").json == {
        "events": 3, "letters": 5, "scheduled": 0, "entries": 5, "dry_run": False,
    }  # fmt: skip
    assert SECRET not in str(rows(db)) + held_in_redis(box)


def test_a_purge_takes_a_reason_a_selection_and_a_redis(outbox: Run, served: Run, db: Db, monkeypatch: Any) -> None:
    add(db, "a", SECRET)
    assert served("purge", "--key", SECRET, "--yes").status == 2
    assert served("purge", "--key", SECRET, "--reason", " ", "--yes").status == 2
    assert served("purge", "--name", "a", "--reason", "x", "--yes").status == 2
    assert served("purge", "--key", SECRET, "--reason", "x").status == 2
    monkeypatch.setenv("OUTBOX_REDIS_URL", "redis://127.0.0.1:1/0")
    assert outbox("purge", "--key", SECRET, "--reason", "x", "--yes").status == 1
    assert db.execute("SELECT key FROM outbox.event").fetchall() == [(SECRET,)]
    with pytest.raises(ValueError, match="by event"):
        admin.purge(Settings(), Selection(key="k", handler="h"), reason="x")


def replayed(run: Run, *arguments: str) -> None:
    done = run("replay", *arguments, "--yes")
    assert (done.status, done.said) == (0, "put back 1 of 1 dead letter"), done.err


def test_audit_rows_that_name_or_quote_what_is_erased_are_blanked_and_others_stay(served: Run, db: Db) -> None:
    register(db, "bill", event="a")
    mine, other = add(db, "a", SECRET, mail="ada@x"), add(db, "a", "bob", mail="bob@x", plan="basic")
    bury(db, "bill", mine, error="no mailbox ada@x")
    bury(db, "bill", other, error="no mailbox bob@x")
    replayed(served, mine, "--edit", "payload.mail=ada-new@x", "--reason", "by id")
    db.execute("UPDATE outbox.dead_letter SET replayed_at = NULL")
    replayed(served, "--error", "mailbox ada@x", "--reason", "by error")
    db.execute("UPDATE outbox.dead_letter SET replayed_at = NULL WHERE event_id = %s", [mine])
    replayed(
        served, "--handler", "bill", "--limit", "1", "--edit", '{"to": {"mail": "ada-newer@x"}}', "--reason", "all"
    )
    db.execute("UPDATE outbox.dead_letter SET replayed_at = NULL WHERE event_id = %s", [other])
    replayed(served, "--error", "mailbox bob@x", "--edit", "payload.plan=gold", "--reason", "of bob")
    assert served("purge", "--key", SECRET, "--reason", "x", "--yes").status == 0
    kept = {reason: detail for _, reason, detail in audits(db)}
    assert [kept[which]["filter"] for which in ("by id", "by error", "all")] == ["(purged)"] * 3
    assert kept["by id"]["count"] == 1
    assert kept["of bob"]["filter"] == {"error": "mailbox bob@x"}
    assert kept["of bob"]["edit"] == ["payload.plan=gold"]
    assert "ada" not in str(rows(db))


def test_what_is_scheduled_and_short_values_that_are_selected_are_quoted_too(served: Run, db: Db) -> None:
    db.execute(
        "INSERT INTO outbox.scheduled (due_at, name, payload) VALUES (now() + '1 day', 'a', %s)",
        ['{"user_id": 8, "mail": "ada@x"}'],
    )
    for detail in ({"filter": {"error": "ADA@X"}}, {"filter": {}, "edit": ["payload.user_id=8"]}):
        db.execute("INSERT INTO outbox.audit (actor, action, detail) VALUES ('me', 'replay', %s)", [json.dumps(detail)])
    assert served("purge", "--where", "payload.user_id=8", "--reason", "x", "--yes").status == 0
    assert [detail["filter"] for _, _, detail in audits(db)[:2]] == ["(purged)"] * 2


@pytest.mark.parametrize("kept", [True, False], ids=["event kept", "event gone"])
def test_copies_of_what_went_with_its_partition_are_erased_at_once_with_their_letters(
    served: Run, db: Db, kept: bool
) -> None:
    register(db, "bill", event="a")
    original = add(db, "a", None, user_id=7, mail=SECRET)
    bury(db, "bill", original)
    db.execute("DELETE FROM outbox.event")
    replayed(served, original, "--edit", "payload.user_id=8")
    (copy,) = db.execute("SELECT id::text FROM outbox.event").fetchone() or ()
    db.execute("DELETE FROM outbox.delivery")
    bury(db, "bill", copy, error=f"{SECRET} refused")
    replayed(served, copy, "--edit", "payload.user_id=9")
    if not kept:
        db.execute("DELETE FROM outbox.event WHERE id = %s", [copy])
    done = served("purge", original, "--reason", "x", "--yes", "-o", "json").json
    assert (done["events"], done["letters"]) == (1 + kept, 2)
    assert SECRET not in str(rows(db))
