"""`outbox.admin.status` and `events` against rows written as the relay and the workers write them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from outbox import admin
from outbox.admin import Selection
from outbox.database import UnreachableError
from outbox.errors import SchemaError
from outbox.names import lock_id
from outbox.position import Position
from outbox.settings import Settings
from relay import lead

pytestmark = pytest.mark.oldest

Db = psycopg.Connection[Any]


@pytest.fixture
def db(database_url: str) -> Iterator[Db]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def add(db: Db, name: str = "a", count: int = 1) -> None:
    db.execute("INSERT INTO outbox.event (name, payload) SELECT %s, '{}' FROM generate_series(1, %s)", [name, count])


def tick(db: Db, published: bool = True) -> int:
    """A tick that covers everything committed; the relay's position moves along when it is published."""
    row = db.execute(
        "INSERT INTO outbox.tick (id, snapshot, count)"
        " SELECT max(id) + 1, pg_current_snapshot(), CASE WHEN %s THEN 1 END FROM outbox.tick RETURNING id",
        [published],
    ).fetchone()
    assert row is not None
    if published:
        db.execute(
            "UPDATE outbox.relay SET tick = %s, seq = (SELECT coalesce(max(seq), 0) FROM outbox.event)", [row[0]]
        )
    return int(row[0])


def handler(db: Db, name: str, event: str = "a", done: tuple[int, int] | None = (0, 0), attached: bool = False) -> None:
    db.execute(
        "INSERT INTO outbox.handler (name, event_name, done_tick, done_seq, attached) VALUES (%s, %s, %s, %s, %s)",
        [name, event, *(done or (None, None)), attached],
    )


def deliver(db: Db, name: str, state: str, limit: int, offset: int = 0) -> None:
    db.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " SELECT id, %(h)s, created_at, %(s)s, 1, CASE WHEN %(s)s = 'retrying' THEN now() END FROM"
        " (SELECT * FROM outbox.event ORDER BY seq LIMIT %(l)s OFFSET %(o)s) AS part",
        {"h": name, "s": state, "l": limit, "o": offset},
    )


def test_a_fresh_outbox_is_empty_and_led_by_no_one(database_url: str) -> None:
    status = admin.status(database_url)
    assert status.position is not None
    assert status.leader is None
    assert (status.events, status.unpublished) == (admin.Count(0), admin.Count(0))
    assert status.unpublished_age is None
    assert status.handlers == ()


def test_no_statement_of_the_status_is_compiled(db: Db) -> None:
    db.execute("SET jit = on")
    with db.transaction():
        admin.status(db)
        assert db.execute("SHOW jit").fetchone() == ("off",), "compiling takes hundreds of times as long as running"
    assert db.execute("SHOW jit").fetchone() == ("on",)


def test_committed_events_are_unpublished_until_a_published_tick_saw_them(database_url: str, db: Db) -> None:
    add(db, count=3)
    assert admin.status(db).unpublished.value == 3
    tick(db, published=False)
    assert admin.status(db).unpublished.value == 3
    moved = tick(db)
    status = admin.status(db)
    assert status.unpublished.value == 0
    assert status.events.value == 3
    assert status.position is not None
    assert status.position.tick == moved


def test_an_event_that_was_open_when_the_last_tick_was_taken_counts_once_it_commits(database_url: str, db: Db) -> None:
    with psycopg.connect(database_url) as late:
        late.execute("INSERT INTO outbox.event (name, payload) VALUES ('a', '{}')")
        add(db)
        tick(db)
        assert admin.status(db).unpublished.value == 0
        late.commit()
    status = admin.status(db)
    assert status.unpublished.value == 1
    assert status.unpublished_age is not None
    assert status.unpublished_age > timedelta(0)


def test_the_session_that_holds_the_lock_of_this_schema_is_the_leader(database_url: str, db: Db) -> None:
    with psycopg.connect(database_url, autocommit=True, application_name="outbox relay") as relay:
        relay.execute("SELECT pg_advisory_lock(%s)", [lock_id("relay", "billing")])
        assert admin.status(db).leader is None
        relay.execute("SELECT pg_advisory_lock(%s)", [lock_id("relay", "outbox")])
        leader = admin.status(db).leader
        assert leader is not None
        assert (leader.pid, leader.application_name) == (relay.info.backend_pid, "outbox relay")


def test_lag_counts_a_handler_s_events_without_an_outcome(db: Db) -> None:
    add(db, "a", 10)
    add(db, "b", 5)
    tick(db)
    handler(db, "h")
    deliver(db, "h", "done", 4)
    deliver(db, "h", "retrying", 2, offset=4)
    deliver(db, "h", "dead", 1, offset=6)
    (found,) = admin.status(db).handlers
    assert (found.lag.value, found.retrying.value) == (3, 2)
    assert found.dead.value == 0, "dead letters are counted, not deliveries"
    assert found.oldest_waiting_at is not None


def test_lag_begins_above_done_to_also_within_a_tick(db: Db) -> None:
    tick(db)
    add(db, "a", 4)
    second = tick(db)
    row = db.execute("SELECT min(seq) FROM outbox.event").fetchone()
    assert row is not None
    handler(db, "later", done=(second, row[0] + 2))
    handler(db, "first", done=(second - 1, 0))
    assert {h.name: h.lag.value for h in admin.status(db).handlers} == {"first": 4, "later": 1}
    add(db, "a", 2)
    assert {h.name: h.lag.value for h in admin.status(db).handlers} == {"first": 6, "later": 3}


def test_a_handler_shows_who_feeds_it(db: Db) -> None:
    handler(db, "attached", done=(1, 2), attached=True)
    handler(db, "detached", done=(1, 2))
    handler(db, "new", done=None)
    found = {h.name: h for h in admin.status(db).handlers}
    assert {name: h.state for name, h in found.items()} == {name: name for name in found}
    assert found["attached"].done_to == Position(1, 2)
    assert found["new"].done_to is None


def test_counting_stops_where_it_is_told_to_and_says_so(db: Db) -> None:
    add(db, count=50)
    handler(db, "h")
    deliver(db, "h", "done", 20)
    status = admin.status(db, look_at=10)
    assert not any(count.exact for count in (status.events, status.unpublished, status.handlers[0].lag))
    assert (status.events.value, status.unpublished.value) == (10, 10)


@pytest.mark.parametrize(("every", "likely"), [(1, 0), (2, 2500), (10**9, 5000)], ids=["few", "half", "all"])
def test_beyond_what_is_counted_the_lag_is_estimated_from_places_all_over_the_rest(
    db: Db, every: int, likely: int
) -> None:
    # One event that is stuck holds `done_to` back however much above it is done.
    for _ in range(50):
        add(db, count=100)
    tick(db)
    handler(db, "h")
    db.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
        " SELECT id, 'h', created_at, 'done', 1 FROM outbox.event"
        "  WHERE seq %% %s = 0 AND seq > (SELECT min(seq) FROM outbox.event)",
        [every],
    )
    (found,) = admin.status(db, look_at=500).handlers
    assert not found.lag.exact
    assert found.lag.likely == pytest.approx(likely, rel=0.15, abs=5)


def test_the_share_of_a_handler_is_smaller_the_more_there_are(db: Db) -> None:
    add(db, count=600)
    for number in range(4):
        handler(db, f"h{number}")
    assert {h.lag.value for h in admin.status(db, look_at=2000).handlers} == {500}


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (admin.Count(12_345), "12,345"),
        (admin.Count(100, exact=False, estimate=1_234_567), "≈ 1,200,000"),
        (admin.Count(100, exact=False, estimate=50), "≥ 100"),
        (admin.Count(100, exact=False), "≥ 100"),
    ],
)
def test_a_count_says_how_sure_it_is(count: admin.Count, shown: str) -> None:
    assert str(count) == shown


# Who is at work ----------------------------------------------------------------------------------------------------


def test_relays_that_stand_by_are_those_sessions_that_do_not_lead(database_url: str, db: Db) -> None:
    with (
        psycopg.connect(database_url, autocommit=True, application_name="outbox relay outbox") as leader,
        psycopg.connect(database_url, autocommit=True, application_name="outbox relay outbox") as standby,
        psycopg.connect(database_url, autocommit=True, application_name="outbox relay billing"),
    ):
        leader.execute("SELECT pg_advisory_lock(%s)", [lock_id("relay", "outbox")])
        assert [each.pid for each in admin.status(db).standbys] == [standby.info.backend_pid]


def test_the_leader_listens_unless_a_pooler_stands_between(database_url: str, db: Db) -> None:
    with psycopg.connect(database_url, autocommit=True) as relay:
        relay.execute("SELECT pg_advisory_lock(%s)", [lock_id("relay", "outbox")])
        lead.announce(relay, "outbox", "here:1")
        leader = admin.status(db).leader
        assert leader is not None
        assert (leader.name, leader.listens, leader.asleep) == ("here:1", True, False)
        db.execute("SELECT setval('outbox.asleep', extract(epoch FROM clock_timestamp())::bigint + 60)")
        db.execute("UPDATE outbox.relay SET backend_pid = 1")
        leader = admin.status(db).leader
        assert leader is not None
        assert (leader.listens, leader.asleep) == (False, True)


def test_workers_are_alive_until_half_a_minute_after_they_said_so(db: Db) -> None:
    handler(db, "h")
    db.execute(
        "INSERT INTO outbox.worker (name, handlers, seen_at) VALUES"
        " ('w1', '{h,g}', clock_timestamp() - interval '5 s'), ('w2', '{g}', clock_timestamp()),"
        " ('w3', '{h}', clock_timestamp() - interval '31 s')"
    )
    status = admin.status(db)
    assert [(worker.name, worker.handlers) for worker in status.workers] == [("w1", ("h", "g")), ("w2", ("g",))]
    assert status.handlers[0].workers == 1


def test_what_was_published_of_late_is_what_the_ticks_of_the_last_minutes_hold(db: Db) -> None:
    for ago, count in (("10 s", 3), ("2 min", 40), ("6 min", 500)):
        db.execute(
            "INSERT INTO outbox.tick (id, snapshot, created_at, count)"
            " SELECT floor(extract(epoch FROM at) * 1000), pg_current_snapshot(), at, %s"
            "   FROM (SELECT clock_timestamp() - %s::interval AS at) AS moment",
            [count, ago],
        )
    status = admin.status(db)
    assert (status.published_minute, status.published_minutes) == (3, 43)


# The oldest eligible event -----------------------------------------------------------------------------------------


def age(db: Db) -> float | None:
    found = admin.status(db).oldest_eligible_age
    return None if found is None else found.total_seconds()


def test_the_oldest_eligible_event_is_unpublished_or_without_an_outcome_or_overdue(db: Db) -> None:
    assert age(db) is None
    db.execute("INSERT INTO outbox.event (name, payload, created_at) VALUES ('a', '{}', now() - interval '30 s')")
    assert age(db) == pytest.approx(30, abs=5)
    tick(db)
    assert age(db) is None, "nobody handles it"
    handler(db, "h")
    assert age(db) == pytest.approx(30, abs=5)
    deliver(db, "h", "retrying", 1)
    for due, waits in (("- interval '90 s'", 90), ("+ interval '90 s'", None)):
        db.execute(f"UPDATE outbox.delivery SET due_at = clock_timestamp() {due}".encode())
        assert age(db) == (None if waits is None else pytest.approx(waits, abs=5))
    db.execute("UPDATE outbox.delivery SET due_at = clock_timestamp() - interval '1 s', lease = gen_random_uuid()")
    assert age(db) is None, "it is being run"
    assert admin.status(db).handlers[0].running == 1
    db.execute("UPDATE outbox.delivery SET state = 'dead', due_at = NULL, lease = NULL")
    assert age(db) is None


def test_what_a_paused_handler_has_waiting_is_not_eligible(db: Db) -> None:
    add(db)
    tick(db)
    handler(db, "h")
    db.execute("INSERT INTO outbox.hold (what, name, actor) VALUES ('handler', 'h', 'me')")
    assert admin.status(db).handlers[0].lag.value == 1
    assert age(db) is None


@pytest.mark.parametrize("analyzed", [False, True])
def test_status_reads_little_however_much_is_published_and_done(db: Db, analyzed: bool) -> None:
    add(db, count=60_000)
    db.execute(
        "INSERT INTO outbox.tick (id, snapshot, created_at, count)"
        " SELECT id - 86400000 + n, snapshot, created_at - interval '1 day', 1"
        "   FROM outbox.tick, generate_series(1, 20000) AS n"
    )
    last = tick(db)
    handler(db, "h", done=(last, 10**9), attached=True)
    deliver(db, "h", "done", 60_000)
    add(db, count=5)
    db.execute(
        "INSERT INTO outbox.dead_letter"
        " (event_id, handler, event_created_at, name, payload, attempts, error, replayed_at)"
        " SELECT id, 'h', created_at, name, payload, 1, 'boom', CASE WHEN seq > 30000 THEN now() END FROM outbox.event"
    )
    if analyzed:
        db.execute("VACUUM ANALYZE")
    from outbox.admin.statement import statement

    for name in ("overview", "handlers"):
        plan = db.execute(
            b"EXPLAIN (ANALYZE, FORMAT JSON) " + statement(name, "outbox"),
            {"most": 1000, "lock": 1, "relay": "r", "alive": 30},
        ).fetchone()
        assert plan is not None
        rows = sum(node["Actual Rows"] * node["Actual Loops"] for node in scans(plan[0][0]["Plan"]))
        assert rows < 8_000, f"{name} read {rows} rows"
    assert admin.status(db).handlers[0].lag.value == 5


def scans(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes of a plan that read tables."""
    if "Relation Name" in node:
        yield {**node, "Actual Rows": node["Actual Rows"] + node.get("Rows Removed by Filter", 0)}
    for child in node.get("Plans", []):
        yield from scans(child)


def test_status_takes_a_url_a_connection_or_settings(settings: Settings, database_url: str, db: Db) -> None:
    assert admin.status(settings).schema == admin.status(database_url).schema == admin.status(db).schema == "outbox"
    alchemy = database_url.replace("postgresql://", "postgresql+psycopg://")
    assert admin.status(alchemy).schema == "outbox"


def test_a_missing_schema_and_a_missing_server_say_what_to_do(empty_database_url: str) -> None:
    with pytest.raises(SchemaError, match="outbox migrate"):
        admin.status(empty_database_url)
    with pytest.raises(SchemaError, match="outbox migrate"):
        admin.dead_letters(empty_database_url)
    with pytest.raises(
        UnreachableError, match=r"cannot reach PostgreSQL at postgresql://u:\*\*\*@127.0.0.1:1/x"
    ) as caught:
        admin.status("postgresql://u:hidden@127.0.0.1:1/x")
    assert "hidden" not in str(caught.value)


# The log ---------------------------------------------------------------------------------------------------------


def test_events_come_latest_first_with_what_became_of_them(db: Db) -> None:
    # Ids of one millisecond have no order: these are of two.
    db.execute(
        "INSERT INTO outbox.event (id, name, key, payload) VALUES"
        " ('01890a5d-ac96-774b-bcce-b302099a8057', 'a', 'k1', '{\"n\":  1e2}'),"
        " ('01890a5d-ac97-774b-bcce-b302099a8057', 'b', 'k2', '{}')"
    )
    deliver(db, "h", "retrying", 1)
    deliver(db, "g", "done", 1)
    found = admin.events(db)
    assert [event.name for event in found] == ["b", "a"]
    assert found[0].deliveries == ()
    assert found[1].payload_json == '{"n":  1e2}'
    assert [(d.handler, d.state) for d in found[1].deliveries] == [("g", "done"), ("h", "retrying")]
    assert found[1].deliveries[1].due_at is not None


def test_events_are_filtered_by_all_that_is_given(db: Db) -> None:
    db.execute(
        "INSERT INTO outbox.event (name, key, payload) VALUES ('a', 'k1', '{}'), ('a', 'k2', '{}'), ('b', 'k1', '{}')"
    )
    every = admin.events(db)
    assert len(admin.events(db, Selection(name="a"))) == 2
    assert len(admin.events(db, Selection(name="a", key="k1"))) == 1
    assert admin.events(db, Selection(ids=(every[1].id,))) == [every[1]]
    assert len(admin.events(db, limit=1)) == 1
    assert admin.events(db, Selection(since=datetime.now(UTC) + timedelta(hours=1))) == []
    assert len(admin.events(db, Selection(until=datetime.now(UTC) + timedelta(hours=1)))) == 3
