"""Replays beyond dead letters: what is done, cancelled or missed, edited, interrupted; and nothing else is touched."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outbox import admin
from outbox.admin import Edit, Outcome, PayloadField, Selection
from outbox.errors import PayloadError, UnknownError
from tests.integration.mending.conftest import Result, add, audits, bury, deliver, register, states

Db = psycopg.Connection[Any]
Run = Callable[..., Result]


def tick(db: Db) -> None:
    """All that is committed is published, and every handler is past it."""
    (row,) = db.execute(
        "INSERT INTO outbox.tick (id, snapshot, count) SELECT max(id) + 1, pg_current_snapshot(), 1 FROM outbox.tick"
        " RETURNING id"
    )
    db.execute("UPDATE outbox.handler SET done_tick = %s, done_seq = %s", [row[0], 2**63 - 1])


def waiting(db: Db) -> set[tuple[str, str]]:
    rows = db.execute("SELECT event_id::text, handler FROM outbox.delivery WHERE state = 'retrying'")
    return set(rows.fetchall())


def snapshot(db: Db) -> dict[str, dict[Any, Any]]:
    """Every row of what a replay could touch, by its key."""
    return {
        "delivery": {
            (row[0], row[1]): row
            for row in db.execute("SELECT event_id::text, handler, to_jsonb(d) FROM outbox.delivery AS d").fetchall()
        },
        "dead_letter": {
            (row[0], row[1]): row
            for row in db.execute("SELECT event_id::text, handler, to_jsonb(l) FROM outbox.dead_letter AS l").fetchall()
        },
        "event": {row[0]: row for row in db.execute("SELECT id::text, to_jsonb(e) FROM outbox.event AS e").fetchall()},
        "handler": {row[0]: row for row in db.execute("SELECT * FROM outbox.handler").fetchall()},
        "stream": {row[0]: row for row in db.execute("SELECT * FROM outbox.stream").fetchall()},
        "scheduled": {
            row[0]: row for row in db.execute("SELECT s.id, to_jsonb(s) FROM outbox.scheduled AS s").fetchall()
        },
        "hold": {row[:2]: row for row in db.execute("SELECT * FROM outbox.hold").fetchall()},
    }


# What is meant -------------------------------------------------------------------------------------------------------


def test_what_succeeded_runs_again_at_the_handler_that_is_named_and_counts_as_a_replay(outbox: Run, db: Db) -> None:
    register(db, "bill", "mail")
    ids = add(db, 3)
    for handler in ("bill", "mail"):
        deliver(db, handler, "done", *ids)
    done = outbox("replay", "--handler", "bill", "--outcome", "done", "--reason", "wrong rate", "--yes")
    assert (done.status, done.out) == (0, "put back 3 of 3 deliveries\n")
    assert waiting(db) == {(id, "bill") for id in ids}
    row = db.execute("SELECT DISTINCT replays, attempts, due_at <= now() FROM outbox.delivery WHERE handler = 'bill'")
    assert row.fetchall() == [(1, 0, True)]
    ((action, reason, detail),) = audits(db)
    assert (action, reason, detail["outcome"], detail["filter"]) == (
        "replay", "wrong rate", "done", {"handler": "bill"},
    )  # fmt: skip


def test_all_handlers_are_meant_only_when_that_is_said(outbox: Run, db: Db) -> None:
    register(db, "bill", "mail")
    (id,) = add(db)
    deliver(db, "bill", "done", id)
    deliver(db, "mail", "cancelled", id)
    refused = outbox("replay", "--outcome", "any", "--yes")
    assert (refused.status, "--handler NAME or --all-handlers" in refused.err) == (2, True)
    assert outbox("replay", "--outcome", "any", "--all-handlers", "--yes").status == 0
    assert waiting(db) == {(id, "bill"), (id, "mail")}


def test_a_new_handler_gets_history_that_it_missed_and_what_is_on_its_way_stays_on_its_way(db: Db) -> None:
    register(db, "index")
    old = add(db, 3)
    add(db, 2, event="other")
    deliver(db, "index", "done", old[0])
    tick(db)
    add(db, 2)
    assert admin.replay(db, Selection(handler="index"), outcome=Outcome.MISSED).count == 2
    assert waiting(db) == {(id, "index") for id in old[1:]}


def test_what_is_dead_and_gone_with_its_partition_is_no_history_but_a_letter(db: Db) -> None:
    register(db, "bill")
    (id,) = add(db)
    bury(db, "bill", id)
    assert admin.replay(db, Selection(handler="bill"), outcome=Outcome.ANY).count == 1
    # Its letter is put back with it, and no second time.
    assert admin.dead_letters(db) == []
    assert admin.replay(db, Selection(handler="bill")).asked == 0


def test_what_was_discarded_stays_discarded_also_when_any_outcome_is_meant(outbox: Run, db: Db) -> None:
    register(db, "bill")
    gone, dead, done = add(db, 3)
    bury(db, "bill", gone, dead)
    deliver(db, "bill", "done", done)
    assert outbox("discard", gone, "--reason", "never again", "--yes").status == 0
    assert outbox("replay", gone, "--handler", "bill", "--outcome", "any", "--yes").status == 1
    assert outbox("replay", "--handler", "bill", "--outcome", "any", "--yes").out == "put back 2 of 2 deliveries\n"
    assert waiting(db) == {(dead, "bill"), (done, "bill")}


def test_a_handler_that_nobody_announced_is_refused(outbox: Run, db: Db) -> None:
    with pytest.raises(UnknownError):
        admin.replay(db, Selection(handler="bil"), outcome=Outcome.DONE)
    assert outbox("replay", "--handler", "bil", "--outcome", "done", "--yes").status == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--all", "--outcome", "done"],
        ["--all-handlers"],
        ["--outcome", "done", "--handler", "h", "--all-handlers"],
        ["--handler", "h", "--edit", "n=1"],
        ["--handler", "h", "--outcome", "lost"],
    ],
)
def test_what_contradicts_itself_is_wrong_usage(outbox: Run, arguments: list[str]) -> None:
    assert outbox("replay", *arguments, "--yes").status == 2


def test_what_was_counted_before_is_put_back_and_no_more(db: Db) -> None:
    register(db, "bill")
    early, late = add(db, 2), add(db, 3)
    bury(db, "bill", *early)
    counted = admin.candidates(db, Selection())
    bury(db, "bill", *late)
    assert admin.replay(db, Selection(), counted=counted) == admin.Replayed(2, 2, 2)
    assert waiting(db) == {(id, "bill") for id in early}
    assert admin.discard(db, Selection(), counted=2, reason="x") == admin.Discarded(2, 2)
    assert len(admin.dead_letters(db)) == 1


# Edited copies -------------------------------------------------------------------------------------------------------


def unnoted(row: Any) -> Any:
    """A delivery but for what is noted of replays."""
    return row and {**row[2], "failures": None}


def test_an_edited_copy_runs_instead_and_says_whose_it_is_and_the_original_stays(outbox: Run, db: Db) -> None:
    register(db, "bill", "mail")
    (id,) = add(db, key="k", payload='{"card": "old", "n": 1e3}')
    db.execute('UPDATE outbox.event SET headers = \'{"tenant": "acme"}\'')
    bury(db, "bill", id)
    before = snapshot(db)
    assert outbox("replay", id, "--edit", "payload.card=new", "--yes").status == 0
    after = snapshot(db)
    (copy,) = after["event"].keys() - before["event"].keys()
    event = after["event"][copy][1]
    assert (event["payload"], event["key"]) == ({"card": "new", "n": 1000}, "k")
    assert event["headers"] == {"tenant": "acme", "outbox-copy-of": id}
    assert after["event"][id] == before["event"][id]
    assert unnoted(after["delivery"][id, "bill"]) == unnoted(before["delivery"][id, "bill"])
    assert waiting(db) == {(copy, "bill")}
    assert admin.dead_letters(db) == []
    assert after["dead_letter"][id, "bill"][2]["payload"] == {"card": "old", "n": 1000}


def test_a_dry_run_shows_edited_payloads_and_changes_nothing(outbox: Run, db: Db) -> None:
    register(db, "bill")
    (id,) = add(db, payload='{"card": "old"}')
    bury(db, "bill", id)
    before = snapshot(db)
    shown = outbox("replay", "--all", "--edit", '{"card": null}', "--dry-run", "-o", "json").json
    assert [row["payload"] for row in shown["sample"]] == [{}]
    assert (snapshot(db), audits(db)) == (before, [])


def test_an_edit_that_does_not_fit_one_payload_puts_back_nothing_of_its_batch(db: Db) -> None:
    register(db, "bill")
    fits, odd = add(db, payload='{"a": [1]}'), add(db, payload='{"a": []}')
    bury(db, "bill", *fits, *odd)
    with pytest.raises(PayloadError, match=odd[0]):
        admin.replay(db, Selection(handler="bill"), edit=Edit.parse(["payload.a.0=2"]))
    assert waiting(db) == set()


# Interrupted ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [Outcome.DEAD, Outcome.DONE])
def test_an_interrupted_replay_goes_on_where_it_was_and_puts_nothing_back_twice(db: Db, outcome: Outcome) -> None:
    register(db, "bill")
    ids = add(db, 1200)
    (bury if outcome is Outcome.DEAD else lambda *given: deliver(db, "bill", "done", *given[2:]))(db, "bill", *ids)
    which = Selection(handler="bill")

    def interrupt(done: int, total: int) -> None:
        # What ran again meanwhile looks as it did before.
        db.execute("UPDATE outbox.delivery SET state = %s, due_at = NULL WHERE state = 'retrying'", [outcome.value])
        db.execute("UPDATE outbox.dead_letter SET replayed_at = NULL")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        admin.replay(db, which, outcome=outcome, progress=interrupt)
    rest = admin.replay(db, which, outcome=outcome, reason="going on")
    assert (rest.asked, rest.count, rest.total, rest.complete) == (1200, 700, 1200, True)
    assert db.execute("SELECT DISTINCT replays FROM outbox.delivery").fetchall() == [(1,)]
    assert [detail.get("from") for _, _, detail in audits(db)] == [None, 500]
    assert db.execute("SELECT count FROM outbox.replay").fetchall() == [(1200,)], "all that were ever put back"


def test_a_replay_that_has_ended_begins_anew_and_an_interrupted_one_if_that_is_asked(db: Db) -> None:
    register(db, "bill")
    deliver(db, "bill", "done", *add(db, 600))
    which = Selection(handler="bill")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        admin.replay(db, which, outcome=Outcome.DONE, progress=interrupt)
    assert admin.replay(db, which, outcome=Outcome.DONE, anew=True).asked == 100
    db.execute("UPDATE outbox.delivery SET state = 'done', due_at = NULL")
    assert admin.replay(db, which, outcome=Outcome.DONE).count == 600
    # One that nobody remembers is not gone on with.
    db.execute("UPDATE outbox.delivery SET state = 'done', due_at = NULL, updated_at = clock_timestamp()")
    with pytest.raises(KeyboardInterrupt):
        admin.replay(db, which, outcome=Outcome.DONE, progress=interrupt)
    assert admin.interrupted(db, which, outcome=Outcome.DONE) is not None
    db.execute("UPDATE outbox.replay SET began_at = began_at - interval '8 days'")
    assert admin.interrupted(db, which, outcome=Outcome.DONE) is None
    assert admin.replay(db, which, outcome=Outcome.DONE).asked == 100


def test_a_killed_command_goes_on_when_it_is_typed_again(outbox: Run, db: Db, database_url: str) -> None:
    register(db, "bill")
    deliver(db, "bill", "done", *add(db, 40))
    command = ["replay", "--handler", "bill", "--outcome", "done", "--since", "1h", "--rate", "20", "--yes"]
    process = subprocess.Popen(
        [sys.executable, "-m", "console.main", *command], env=_environment(database_url), stdin=subprocess.DEVNULL
    )
    while not waiting(db):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    put_back = len(waiting(db))
    assert 0 < put_back < 40
    db.execute(
        "UPDATE outbox.delivery SET state = 'done', due_at = NULL, updated_at = clock_timestamp()"
        " WHERE state = 'retrying'"
    )
    command[command.index("20")] = "100000"
    shown = outbox(*command, "--dry-run")
    assert f": {put_back} of 40 deliveries are put back\n" in shown.err
    done = outbox(*command, "-o", "json").json
    assert (done["asked"], done["replayed"], done["total"]) == (40, 40 - put_back, 40)
    assert db.execute("SELECT DISTINCT replays FROM outbox.delivery").fetchall() == [(1,)]


def _environment(database_url: str) -> dict[str, str]:
    import os

    return {**os.environ, "OUTBOX_DATABASE_URL": database_url}


# Nothing outside the selection ---------------------------------------------------------------------------------------

NAMES, KEYS, HANDLERS = ["order", "greet"], ["a", "b", None], {"order": ["bill", "mail"], "greet": ["hello"]}
STATES = ["done", "dead", "cancelled", "retrying", "none"]


def group(error: str) -> str:
    """What a group of errors without numbers is called."""
    return hashlib.md5(error.encode()).hexdigest()[:10]


selections = st.builds(
    Selection,
    ids=st.none() | st.sets(st.integers(0, 29), max_size=12).map(lambda found: tuple(UUID(int=n) for n in found)),
    name=st.none() | st.sampled_from(NAMES),
    handler=st.none() | st.sampled_from(["bill", "mail", "hello"]),
    key=st.none() | st.sampled_from(["a", "b", "c"]),
    payload=st.just(()) | st.sampled_from([(PayloadField(("n",), "1"),), (PayloadField(("n",), "2"),)]),
    error=st.none() | st.sampled_from(["boom", "BANG", "nothing"]),
    group=st.none() | st.sampled_from(["boom", "bang", "none"]).map(lambda error: group(error)),
    since=st.none() | st.integers(0, 30).map(lambda n: datetime(2026, 1, 1, 0, n, tzinfo=UTC)),
    until=st.none() | st.integers(0, 30).map(lambda n: datetime(2026, 1, 1, 0, n, tzinfo=UTC)),
)


@pytest.fixture
def world(db: Db) -> list[dict[str, Any]]:
    """Thirty events, and every outcome at every handler; as values, too."""
    for name, handlers in HANDLERS.items():
        register(db, *handlers, event=name)
    found: list[dict[str, Any]] = []
    for n in range(30):
        name, key = NAMES[n % 2], KEYS[n % 3]
        at = datetime(2026, 1, 1, 0, n, tzinfo=UTC)
        (row,) = db.execute(
            "INSERT INTO outbox.event (name, key, payload, created_at) VALUES (%s, %s, %s, %s) RETURNING id::text",
            [name, key, json.dumps({"n": n % 4}), at],
        )
        for number, handler in enumerate(HANDLERS[name]):
            state, error = STATES[(n // 2 + number) % 5], ("boom", "bang")[n % 2] if n % 5 else None
            if state == "dead":
                bury(db, handler, row[0], error=error or "none")
                db.execute("UPDATE outbox.dead_letter SET died_at = event_created_at")
            elif state != "none":
                deliver(db, handler, state, row[0], error=error)
            found.append(
                {"id": row[0], "n": n, "name": name, "key": key, "at": at, "handler": handler, "state": state,
                 "error": "none" if state == "dead" and not error else error if state != "none" else None}
            )  # fmt: skip
    db.execute(
        "INSERT INTO outbox.scheduled (due_at, name, key, payload) VALUES (now() + '1 day', 'order', 'a', '{\"n\": 1}')"
    )
    db.execute("INSERT INTO outbox.stream (name, tick, seq) VALUES ('order', 1, 1)")
    admin.pause(db, "handler", "mail")
    tick(db)
    return found


def fits(which: Selection, each: dict[str, Any], ids: dict[int, str]) -> bool:
    """What a selection says, in Python."""
    return (
        (which.ids is None or each["id"] in {ids[id.int] for id in which.ids})
        and which.name in (None, each["name"])
        and which.handler in (None, each["handler"])
        and (which.key is None or which.key == each["key"])
        and all(field.value == str(each["n"] % 4) for field in which.payload)
        and (which.error is None or which.error.lower() in (each["error"] or ""))
        and (which.group is None or (each["error"] is not None and which.group == group(each["error"])))
        and (which.since is None or each["at"] >= which.since)
        and (which.until is None or each["at"] < which.until)
    )


@given(selections, st.sampled_from(Outcome), st.booleans(), st.none() | st.integers(1, 5))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_outside_the_selection_is_touched(
    db: Db, world: list[dict[str, Any]], which: Selection, outcome: Outcome, edit: bool, limit: int | None
) -> None:
    ids = {each["n"]: each["id"] for each in world}
    meant = {
        Outcome.DEAD: ["dead"], Outcome.DONE: ["done"], Outcome.CANCELLED: ["cancelled"], Outcome.MISSED: ["none"],
        Outcome.ANY: ["dead", "done", "cancelled", "none"],
    }[outcome]  # fmt: skip
    expected = [(each["id"], each["handler"]) for each in world if each["state"] in meant and fits(which, each, ids)]
    given = which if which.ids is None else _with_ids(which, ids)
    with db.transaction(force_rollback=True):
        before = snapshot(db)
        done = admin.replay(db, given, outcome=outcome, limit=limit, edit=Edit.parse(["payload.m=1"]) if edit else None)
        after = snapshot(db)
        count = len(expected) if limit is None else min(limit, len(expected))
        assert (done.asked, done.count) == (count, count)
        for table in ("handler", "stream", "scheduled", "hold"):
            assert after[table] == before[table]
        assert {id: after["event"][id] for id in before["event"]} == before["event"]
        changed = {key for key, row in after["delivery"].items() if before["delivery"].get(key) != row}
        letters = {key for key, row in after["dead_letter"].items() if before["dead_letter"].get(key) != row}
        if edit:
            copies = after["event"].keys() - before["event"].keys()
            whose = {after["event"][id][1]["headers"]["outbox-copy-of"] for id in copies}
            unlike = {key for key in changed if unnoted(before["delivery"].get(key)) != unnoted(after["delivery"][key])}
            assert {id for id, _ in unlike} == copies
            assert changed - unlike <= set(expected)
            assert (len(copies), whose <= {id for id, _ in expected}) == (count, True)
        else:
            assert after["event"].keys() == before["event"].keys()
            assert (len(changed), changed <= set(expected)) == (count, True)
        assert letters <= {key for key in expected if key in before["dead_letter"]}
        assert not before["delivery"].keys() - after["delivery"].keys()


def _with_ids(which: Selection, ids: dict[int, str]) -> Selection:
    from dataclasses import replace

    assert which.ids is not None
    return replace(which, ids=tuple(UUID(ids[id.int]) for id in which.ids))


def test_the_states_of_a_replayed_event_are_its_own(db: Db) -> None:
    register(db, "bill", "mail")
    (id,) = add(db)
    deliver(db, "bill", "done", id)
    deliver(db, "mail", "done", id)
    admin.replay(db, Selection(handler="mail", ids=(UUID(id),)), outcome=Outcome.DONE)
    assert states(db, id) == {"bill": "done", "mail": "retrying"}
