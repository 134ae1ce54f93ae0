"""Each filter of a selection takes exactly what it says, of events and of dead letters."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from outbox import admin
from outbox.admin import PayloadField, Selection
from outbox.admin.selection import DELIVERIES, group_of

Db = psycopg.Connection[Any]


@pytest.fixture
def db(database_url: str) -> Iterator[Db]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def die(db: Db, key: str, payload: str = "{}", handler: str = "h", name: str = "a", error: str = "boom") -> None:
    """An event, its dead delivery and its letter."""
    db.execute(
        "WITH added AS (INSERT INTO outbox.event (name, key, payload) VALUES (%(name)s, %(key)s, %(payload)s)"
        "  RETURNING *),"
        " failed AS (INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, error)"
        "  SELECT id, %(handler)s, created_at, 'dead', 10, %(error)s FROM added)"
        " INSERT INTO outbox.dead_letter"
        "  (event_id, handler, event_created_at, name, key, payload, attempts, error, died_at)"
        " SELECT id, %(handler)s, created_at, name, key, payload, 10, %(error)s, created_at FROM added",
        {"name": name, "key": key, "payload": payload, "handler": handler, "error": error},
    )


def both(db: Db, which: Selection) -> list[str | None]:
    """The keys of what fits, oldest first: the same of events, of their deliveries and of dead letters."""
    letters = [letter.key for letter in admin.dead_letters(db, which, oldest_first=True)]
    # Ids of one millisecond have no order.
    events = sorted(admin.events(db, which), key=lambda event: event.created_at)
    assert [event.key for event in events] == letters
    assert admin.count_dead_letters(db, which) == len(letters)
    sql, parameters = which.conditions(DELIVERIES, "outbox")
    query = (
        f"SELECT e.key FROM outbox.event AS e JOIN outbox.delivery AS d ON d.event_id = e.id WHERE {sql} ORDER BY e.seq"
    )
    assert [row[0] for row in db.execute(query.encode(), parameters)] == letters
    return letters


PAYLOADS = {
    "number": '{"user_id": 7, "address": {"city": "Bern", "lines": ["x", "y"]}}',
    "text": '{"user_id": "7"}',
    "other": '{"user_id": 77, "address": {"city": "Basel"}}',
    "null": '{"user_id": null}',
    "none": "{}",
    "dotted": '{"a.b": 1}',
}


@pytest.mark.parametrize(
    ("fields", "keys"),
    [
        (["payload.user_id=7"], ["number", "text"]),
        (["payload.user_id=null"], ["null"]),
        (["payload.address.city=Bern"], ["number"]),
        (["payload.address.lines.1=y"], ["number"]),
        (["payload.user_id=7", "payload.address.city=Bern"], ["number"]),
        (["payload.user_id=7", "payload.address.city=Basel"], []),
        (["payload.address=Bern"], []),
        (["payload.a.b=1"], []),
    ],
    ids=str,
)
def test_a_payload_field_fits_by_what_stands_there(db: Db, fields: list[str], keys: list[str]) -> None:
    for key, payload in PAYLOADS.items():
        die(db, key, payload)
    assert both(db, Selection(payload=tuple(map(PayloadField.parse, fields)))) == keys


def test_a_field_whose_name_has_a_dot_is_given_as_a_path(db: Db) -> None:
    die(db, "dotted", PAYLOADS["dotted"])
    assert both(db, Selection(payload=(PayloadField(("a.b",), "1"),))) == ["dotted"]


def test_every_filter_takes_its_own_and_all_must_fit(db: Db) -> None:
    die(db, "k1", handler="h", name="a", error="Timeout: 100% of 3 s_used")
    die(db, "k2", handler="g", name="a", error="Refused: no")
    die(db, "k3", handler="h", name="b", error="Refused: no")
    assert both(db, Selection()) == ["k1", "k2", "k3"]
    assert both(db, Selection(name="a")) == ["k1", "k2"]
    assert both(db, Selection(handler="h")) == ["k1", "k3"]
    assert both(db, Selection(key="k2")) == ["k2"]
    assert both(db, Selection(error="refused")) == ["k2", "k3"]
    assert both(db, Selection(error="100% OF")) == ["k1"]
    assert both(db, Selection(error="s%used")) == []
    assert both(db, Selection(handler="h", error="refused")) == ["k3"]
    assert both(db, Selection(name="a", handler="h", error="refused")) == []
    second = admin.dead_letters(db, Selection(key="k2"))[0]
    assert both(db, Selection(ids=(second.event_id,))) == ["k2"]
    assert both(db, Selection(ids=())) == []
    assert both(db, Selection(since=second.died_at)) == ["k2", "k3"]
    assert both(db, Selection(until=second.died_at)) == ["k1"]
    assert both(db, Selection(since=second.died_at, until=second.died_at + timedelta(microseconds=1))) == ["k2"]


def test_handler_and_error_of_an_event_are_of_one_and_the_same_delivery(db: Db) -> None:
    die(db, "k", handler="h", error="Timeout: no")
    db.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
        " SELECT id, 'g', created_at, 'done', 1 FROM outbox.event"
    )
    assert len(admin.events(db, Selection(handler="g"))) == 1
    assert admin.events(db, Selection(handler="g", error="timeout")) == []


def group(db: Db, error: str) -> str:
    row = db.execute(
        f"SELECT {group_of('error')} FROM (SELECT %s::text AS error) AS given".encode(), [error]
    ).fetchone()
    assert row is not None
    return str(row[0])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("MailboxFull: user 7 has 1,024 letters", "MailboxFull: user 81 has 2 letters"),
        ("KeyError: 0197b6b0-5d3e-7c2a-9f00-3d2b6c1a7e55", "KeyError: 01890a5d-ac96-774b-bcce-b302099a8057"),
        (
            "NotFound: customer cus_9aZ81 (at tasks.py:12 in bill)",
            "NotFound: customer cus_77Q (at tasks.py:19 in bill)",
        ),
        ("OSError: 10.0.0.3:5432 refused", "OSError: 192.168.1.17:6379 refused"),
        ("Late: due at 2026-11-21T10:00:00.25+01:00 already", "Late: due at 2025-01-01T00:00:00Z already"),
        ("order 17: not found", "order 3: not found"),
        ("Bad: 1\nsee line 2 of this", "Bad: 2\nwhatever follows"),
    ],
)
def test_errors_that_differ_in_numbers_and_ids_are_one_group(db: Db, first: str, second: str) -> None:
    assert group(db, first) == group(db, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("S3Error: no", "Ec2Error: no"),
        ("MailboxFull: user 7", "MailboxGone: user 7"),
        ("Refused: at host", "Refused: at once"),
        ("Refused: no (at tasks.py:1 in bill)", "Refused: no (at tasks.py:1 in mail)"),
    ],
)
def test_errors_that_differ_in_type_or_words_are_two_groups(db: Db, first: str, second: str) -> None:
    assert group(db, first) != group(db, second)


def test_a_group_selects_its_errors(db: Db) -> None:
    for number in (1, 2):
        die(db, f"k{number}", error=f"MailboxFull: user {number}")
    die(db, "other", error="Refused: no")
    assert both(db, Selection(group=group(db, "MailboxFull: user 99"))) == ["k1", "k2"]


def test_conditions_may_stand_in_statements_that_are_prepared(db: Db) -> None:
    die(db, "k", '{"n": 1}')
    which = Selection(name="a", handler="h", payload=(PayloadField.parse("payload.n=1"),), error="boom")
    for _ in range(8):
        assert both(db, which) == ["k"]


def test_groups_are_counted_by_handler_and_error_the_largest_first(db: Db) -> None:
    die(db, "k0", error="Refused: no")
    for number in range(3):
        die(db, f"k{number}", error=f"MailboxFull: user {number}")
    die(db, "k4", handler="g", error="MailboxFull: user 9")
    found = admin.error_groups(db)
    assert [(each.handler, each.count, each.error) for each in found] == [
        ("h", 3, "MailboxFull: user 2"),
        ("g", 1, "MailboxFull: user 9"),
        ("h", 1, "Refused: no"),
    ]
    assert found[0].group == found[1].group != found[2].group
    assert both(db, Selection(group=found[0].group, handler="h")) == ["k0", "k1", "k2"]
    assert [each.key for each in admin.events(db, Selection(ids=(found[0].latest_id,)))] == ["k2"]
    assert [each.count for each in admin.error_groups(db, Selection(handler="g"))] == [1]
    assert [each.count for each in admin.error_groups(db, limit=1)] == [3]
    assert sum(each.count for each in admin.error_groups(db, look_at=2)) == 2


# How far listings look ----------------------------------------------------------------------------------------------


def test_a_listing_looks_no_further_than_it_is_told_and_says_where_it_ended(db: Db) -> None:
    for number in range(5):
        die(db, f"k{number}")
    first, second = (admin.dead_letters(db, oldest_first=True)[n].died_at for n in (1, 2))
    rare = Selection(key="k0")
    assert [event.key for event in admin.events(db, rare)] == ["k0"]
    assert (admin.events(db, rare).reached, admin.dead_letters(db, rare).reached) == (None, None)
    for found in (admin.dead_letters(db, rare, look_at=2), admin.error_groups(db, rare, look_at=2)):
        assert (len(found), found.reached) == (0, second)
    oldest = admin.dead_letters(db, Selection(key="k4"), look_at=1, oldest_first=True)
    assert (oldest, oldest.reached) == ([], first)
    assert admin.events(db, rare, look_at=2).reached is not None
    assert [letter.key for letter in admin.dead_letters(db, Selection(key="k0", until=first), look_at=1)] == ["k0"]
    assert admin.dead_letters(db, limit=1, look_at=2).reached is None, "it has found what was asked for"


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize(
    "which",
    [
        Selection(),
        Selection(key="nobody"),
        Selection(payload=(PayloadField(("n",), "-1"),)),
        Selection(handler="h", error="nothing like it"),
        Selection(group="0000000000"),
    ],
    ids=lambda which: ", ".join(which.described()) or "everything",
)
def test_no_listing_reads_more_than_it_looks_at_however_much_there_is(db: Db, which: Selection, analyzed: bool) -> None:
    db.execute("INSERT INTO outbox.event (name, key, payload) SELECT 'a', 'k', '{}' FROM generate_series(1, 20000)")
    db.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
        " SELECT id, 'h', created_at, 'done', 1 FROM outbox.event"
    )
    db.execute(
        "INSERT INTO outbox.dead_letter"
        " (event_id, handler, event_created_at, name, key, payload, attempts, error, died_at, replayed_at)"
        " SELECT id, 'h', created_at, name, key, payload, 1, 'boom', created_at, CASE WHEN seq % 2 = 0 THEN now() END"
        "   FROM outbox.event"
    )
    if analyzed:
        db.execute("VACUUM ANALYZE outbox.event, outbox.delivery, outbox.dead_letter")
    before = rows_read(db)
    admin.events(db, which, limit=10, look_at=500)
    admin.dead_letters(db, which, limit=10, look_at=500)
    admin.error_groups(db, which, limit=10, look_at=500)
    # Each of the three looks at 500, some ask the index once more for what is beyond, and one looks up deliveries.
    assert rows_read(db) - before < 6_000


def rows_read(db: Db) -> int:
    """Rows that scans of tables and indexes have given in this database so far."""
    db.execute("SELECT pg_stat_force_next_flush()")
    row = db.execute(
        "SELECT sum(seq_tup_read + coalesce(i.read, 0)) FROM pg_stat_user_tables AS t"
        "  LEFT JOIN (SELECT relid, sum(idx_tup_read) AS read FROM pg_stat_user_indexes GROUP BY relid) AS i"
        "  USING (relid)"
        " WHERE t.schemaname = 'outbox'"
    ).fetchone()
    assert row is not None
    return int(row[0])
