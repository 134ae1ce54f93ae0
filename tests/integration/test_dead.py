"""Dead letters, and putting them back: exactly those that were asked for, once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from outbox import admin
from outbox.admin import Selection

pytestmark = pytest.mark.oldest

Db = psycopg.Connection[Any]


@pytest.fixture
def db(database_url: str) -> Iterator[Db]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def die(db: Db, handler: str = "h", event: str = "a", count: int = 1, ago: str = "0") -> None:
    """Events whose delivery to `handler` failed for good."""
    db.execute(
        "INSERT INTO outbox.handler (name, event_name) VALUES (%s, %s) ON CONFLICT (name) DO NOTHING", [handler, event]
    )
    db.execute(
        "WITH added AS (INSERT INTO outbox.event (name, key, payload) SELECT %(event)s, 'k', '{\"n\": 1}'"
        "  FROM generate_series(1, %(count)s) RETURNING *),"
        " failed AS (INSERT INTO outbox.delivery"
        "  (event_id, handler, event_created_at, state, attempts, crashes, error)"
        "  SELECT id, %(handler)s, created_at, 'dead', 10, 1, 'boom' FROM added)"
        " INSERT INTO outbox.dead_letter"
        "  (event_id, handler, event_created_at, name, key, payload, attempts, error, died_at)"
        " SELECT id, %(handler)s, created_at, name, key, payload, 10, 'boom', now() - %(ago)s::interval FROM added",
        {"handler": handler, "event": event, "count": count, "ago": ago},
    )


def states(db: Db) -> dict[tuple[str, str], int]:
    rows = db.execute("SELECT handler, state, count(*) FROM outbox.delivery GROUP BY 1, 2").fetchall()
    return {(handler, state): count for handler, state, count in rows}


def now(db: Db) -> datetime:
    row = db.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


def test_dead_letters_come_latest_first_and_fit_every_filter(db: Db) -> None:
    die(db, "h", "a", ago="3 hours")
    die(db, "h", "b", ago="2 hours")
    die(db, "g", "b", ago="1 hour")
    everyone = admin.dead_letters(db)
    assert [(letter.handler, letter.event_name) for letter in everyone] == [("g", "b"), ("h", "b"), ("h", "a")]
    assert everyone[0].error == "boom"
    assert everyone[0].attempts == 10
    assert everyone[0].payload_json == '{"n": 1}'
    assert len(admin.dead_letters(db, Selection(handler="h", name="b"))) == 1
    assert len(admin.dead_letters(db, Selection(since=now(db) - timedelta(minutes=150)))) == 2
    assert len(admin.dead_letters(db, Selection(until=now(db) - timedelta(minutes=150)))) == 1
    assert admin.dead_letters(db, Selection(ids=(everyone[2].event_id,))) == [everyone[2]]
    assert len(admin.dead_letters(db, limit=1)) == 1
    assert admin.count_dead_letters(db, Selection(name="b")) == 2


def test_a_replay_makes_the_delivery_due_with_all_its_attempts(db: Db) -> None:
    die(db)
    assert admin.replay(db, Selection(handler="h")) == admin.Replayed(1, 1, 1)
    row = db.execute(
        "SELECT state, attempts, crashes, lease, replays, due_at <= clock_timestamp() FROM outbox.delivery"
    ).fetchone()
    assert row == ("retrying", 0, 0, None, 1, True)
    assert admin.dead_letters(db) == []
    assert admin.replay(db, Selection(handler="h")) == admin.Replayed(0, 0, 0)


def test_a_replay_touches_only_what_was_asked_for(db: Db) -> None:
    die(db, "h", "a", 5)
    die(db, "h", "b", 5)
    die(db, "g", "a", 5)
    db.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
        " SELECT event_id, 'other', event_created_at, 'done', 1 FROM outbox.dead_letter"
    )
    before = db.execute("SELECT * FROM outbox.delivery WHERE handler <> 'h' ORDER BY 1, 2").fetchall()
    assert admin.replay(db, Selection(handler="h", name="a")).count == 5
    assert db.execute("SELECT * FROM outbox.delivery WHERE handler <> 'h' ORDER BY 1, 2").fetchall() == before
    assert states(db) == {("h", "retrying"): 5, ("h", "dead"): 5, ("g", "dead"): 5, ("other", "done"): 15}
    letter = admin.dead_letters(db, Selection(handler="g"))[0]
    assert admin.replay(db, Selection(ids=(letter.event_id,))).count == 1
    assert states(db)["g", "retrying"] == 1


def test_the_limit_takes_the_oldest(db: Db) -> None:
    for hours in (1, 3, 2):
        die(db, f"h{hours}", ago=f"{hours} hours")
    assert admin.replay(db, Selection(), limit=2) == admin.Replayed(2, 2, 2)
    assert [letter.handler for letter in admin.dead_letters(db)] == ["h1"]


def test_a_delivery_that_went_with_its_partition_is_made_anew(db: Db) -> None:
    die(db)
    db.execute("DELETE FROM outbox.delivery")
    db.execute("DELETE FROM outbox.event")
    db.execute("UPDATE outbox.dead_letter SET event_created_at = '2001-01-01'")
    assert admin.replay(db, Selection(handler="h")).count == 1
    row = db.execute("SELECT state, replays, event_created_at = '2001-01-01' FROM outbox.delivery").fetchone()
    assert row == ("retrying", 1, True)


def test_a_delivery_that_is_no_longer_dead_stays_as_it_is(db: Db) -> None:
    die(db)
    db.execute("UPDATE outbox.delivery SET state = 'done'")
    admin.replay(db, Selection(handler="h"))
    assert states(db) == {("h", "done"): 1}


def test_many_letters_go_in_batches_and_each_reports_its_progress(db: Db) -> None:
    die(db, count=1200)
    seen: list[tuple[int, int]] = []
    assert admin.replay(db, Selection(), progress=lambda done, total: seen.append((done, total))).complete
    assert seen == [(500, 1200), (1000, 1200), (1200, 1200)]
    assert states(db) == {("h", "retrying"): 1200}


def test_replays_at_the_same_time_share_the_letters_and_double_none(database_url: str, db: Db) -> None:
    die(db, count=2000)
    start = threading.Barrier(4)

    def one(_: int) -> admin.Replayed:
        start.wait()
        return admin.replay(database_url, Selection(handler="h"))

    with ThreadPoolExecutor(4) as pool:
        done = sum(replayed.count for replayed in pool.map(one, range(4)))
    done += admin.replay(db, Selection(handler="h")).count
    assert done == 2000
    assert db.execute("SELECT DISTINCT state, replays FROM outbox.delivery").fetchall() == [("retrying", 1)]


def test_what_dies_again_meanwhile_is_not_put_back_twice(db: Db) -> None:
    die(db, count=600)

    def die_again(done: int, total: int) -> None:
        db.execute("UPDATE outbox.delivery SET state = 'dead', due_at = NULL WHERE state = 'retrying'")
        db.execute("UPDATE outbox.dead_letter SET replayed_at = NULL WHERE replayed_at IS NOT NULL")
        db.execute("UPDATE outbox.dead_letter SET died_at = clock_timestamp() WHERE event_id IN"
                   " (SELECT event_id FROM outbox.delivery WHERE replays = 1 LIMIT 100)")  # fmt: skip

    assert admin.replay(db, Selection(), progress=die_again) == admin.Replayed(600, 600, 600)
    assert db.execute("SELECT DISTINCT replays FROM outbox.delivery").fetchall() == [(1,)]


def test_an_interrupted_replay_has_done_what_it_reported_and_can_be_repeated(db: Db) -> None:
    die(db, count=1200)
    reported = []

    def stop(done: int, total: int) -> None:
        reported.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        admin.replay(db, Selection(), progress=stop)
    assert states(db) == {("h", "retrying"): reported[0], ("h", "dead"): 1200 - reported[0]}
    assert admin.replay(db, Selection()).count == 1200 - reported[0]


def test_the_rate_spreads_them_over_time(db: Db) -> None:
    die(db, count=30)
    pauses: list[float] = []
    readings = iter([0.0, 0.04, 0.25])
    replayed = admin.replay(db, Selection(), rate=100, sleep=pauses.append, clock=lambda: next(readings))
    assert replayed.count == 30
    # Ten letters may take a tenth of a second; the second ten were late already.
    assert pauses == pytest.approx([0.06, 0.0])


def test_an_audit_row_says_who_why_and_what(db: Db) -> None:
    die(db, count=3)
    admin.replay(db, Selection(handler="h"), reason="fixed", actor="ann@desk")
    admin.replay(db, Selection(handler="h"), reason="nothing left", actor="ann@desk")
    rows = db.execute("SELECT actor, action, reason, detail FROM outbox.audit").fetchall()
    detail = {"filter": {"handler": "h"}, "count": 3, "limit": None, "rate": None}
    assert rows == [("ann@desk", "replay", "fixed", detail)]


def test_a_limit_or_rate_of_nothing_is_refused(db: Db) -> None:
    with pytest.raises(ValueError, match="positive"):
        admin.replay(db, Selection(), limit=0)
    with pytest.raises(ValueError, match="positive"):
        admin.replay(db, Selection(), rate=0)
