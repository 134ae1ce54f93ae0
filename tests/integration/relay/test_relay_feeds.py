"""Where handlers begin, catch-up feeds and their bounds, attaching, and what a lost stream does to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from outbox.position import Position
from relay import catch_up, tick
from relay.bounds import CATCH_UP
from relay.catch_up import PIECE
from relay.tick import MOST_ROWS
from relay.window import next_most

pytestmark = pytest.mark.oldest

MOST = CATCH_UP.entries
OVER = PIECE + MOST_ROWS
"""How many more a feed may put on a stream that is not full yet."""


def test_the_first_handler_begins_with_the_oldest_retained_event(
    box: Any, relay: Any, wait_for: Callable[..., Any]
) -> None:
    seqs = [*box.add("paid", 3), *box.add("paid")]
    wait_for(lambda: len(box.ticks()) > 1, "a tick without anyone to publish it for")
    box.register("send", event="paid")
    box.await_seqs(seqs, "paid", "send")
    box.await_attached("send")
    assert box.entries("paid") == []


def test_an_attached_handler_is_served_by_the_main_stream(box: Any, relay: Any) -> None:
    box.add("paid", 2)
    box.subscribe("send", event="paid")
    later = box.add("paid", 2)
    box.await_seqs(later, "paid")
    assert box.seqs("paid", "send") == [1, 2]
    assert box.work("paid", "send") == [1, 2, 3, 4]


def test_a_later_handler_begins_at_its_registration(box: Any, relay: Any) -> None:
    box.subscribe("first", event="paid")
    box.await_seqs(box.add("paid", 3), "paid")
    box.register("second", event="paid")
    seqs = box.add("paid", 2)
    assert box.work_until("paid", "second", seqs) == seqs


def test_a_later_handler_misses_nothing_that_was_added_after_its_registration(box: Any, relay: Any) -> None:
    box.subscribe("first", event="paid")
    known: list[int] = []
    for name in ("second", "third", "fourth"):
        # The relay is not told of the handler, and takes the event's tick without looking for new ones.
        box.sql.execute("INSERT INTO outbox.handler (name, event_name) VALUES (%s, 'paid')", [name])
        seqs = box.add("paid")
        known += seqs
        box.await_seqs(known, "paid")
        box.sql.execute("NOTIFY outbox")
        assert box.work_until("paid", name, seqs) == seqs


BEGIN = "INSERT INTO outbox.handler (name, event_name, start_at) VALUES ('late', 'paid', {})"


@pytest.mark.parametrize("siblings", [0, 1])
@pytest.mark.parametrize(
    ("start", "first"),
    [("'-infinity'", 0), ("'infinity'", 6), ("(SELECT created_at FROM outbox.event WHERE seq = 4)", 3)],
    ids=["beginning", "now", "a moment"],
)
def test_a_handler_begins_where_it_said(
    box: Any, relay: Any, wait_for: Callable[..., Any], siblings: int, start: str, first: int
) -> None:
    if siblings:
        box.subscribe("first", event="paid")
    seqs = []
    for _ in range(2):
        ticks = len(box.ticks())
        seqs += box.add("paid", 3)
        wait_for(lambda ticks=ticks: len(box.ticks()) > ticks, "a tick of these")
    box.sql.execute(BEGIN.format(start))
    seqs += box.add("paid", 2)
    assert box.work_until("paid", "late", seqs[first:]) == seqs[first:]


def test_where_a_known_handler_begins_is_not_asked_again(box: Any, relay: Any) -> None:
    box.subscribe("send", event="paid")
    seqs = box.add("paid", 3)
    assert box.work_until("paid", "send", seqs) == seqs
    box.sql.execute("UPDATE outbox.handler SET start_at = '-infinity'")
    more = box.add("paid", 2)
    assert box.work_until("paid", "send", more) == more


def test_handlers_of_one_event_that_register_together_begin_together(box: Any, relay: Any) -> None:
    seqs = box.add("paid", 3)
    box.register("send", "count", event="paid")
    box.await_seqs(seqs, "paid", "send")
    box.await_seqs(seqs, "paid", "count")


def test_handlers_of_one_event_that_register_while_no_relay_runs_begin_together(
    box: Any, run_relay: Callable[..., Any]
) -> None:
    box.register("send", event="paid")
    seqs = box.add("paid", 3)
    box.register("count", event="paid")
    with run_relay():
        box.await_seqs(seqs, "paid", "send")
        box.await_seqs(seqs, "paid", "count")


def test_handlers_of_different_events_do_not_concern_each_other(box: Any, relay: Any) -> None:
    paid, sent = box.add("paid", 2), box.add("sent", 2)
    box.register("on_paid", event="paid")
    box.register("on_sent", event="sent")
    box.await_seqs(paid, "paid", "on_paid")
    box.await_seqs(sent, "sent", "on_sent")


def test_a_catch_up_stream_is_bounded_and_goes_on_when_it_is_drained(
    box: Any, relay: Any, wait_for: Callable[..., Any]
) -> None:
    seqs = box.add_ticked("paid", MOST + OVER + 2000)
    box.register("send", event="paid")
    key = "outbox:{paid}:send"
    wait_for(lambda: box.redis.xlen(key) >= MOST, "the full stream")
    # A sign that the relay lives and has stepped the feed again: another handler's feed, added later, is through.
    box.add("sent")
    box.subscribe("other", event="sent")
    assert MOST <= box.redis.xlen(key) < MOST + OVER
    assert not box.attached("send")
    given: list[int] = []

    def drained() -> bool:
        given.extend(box.work("paid", "send"))
        assert box.redis.xlen(key) < MOST + OVER
        return len(given) >= len(seqs)

    wait_for(drained, "all events at the handler")
    assert given == seqs
    box.await_attached("send")


def test_a_handler_that_does_not_read_keeps_no_other_waiting(box: Any, relay: Any) -> None:
    box.add_ticked("paid", MOST + OVER)
    box.register("slow", event="paid")
    box.subscribe("quick", event="sent")
    seqs = box.add("sent", 5)
    box.await_seqs(seqs, "sent")
    assert not box.attached("slow")


def test_events_that_have_an_outcome_are_not_fed_again(box: Any, relay: Any) -> None:
    box.add("paid", 4)
    box.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
        " SELECT id, 'send', created_at, 'dead', 1 FROM outbox.event WHERE seq IN (2, 3)"
    )
    box.subscribe("send", event="paid")
    assert box.seqs("paid", "send") == [1, 4]


def test_a_feed_that_is_interrupted_goes_on_where_it_was(box: Any, run_relay: Callable[..., Any]) -> None:
    seqs = box.add("paid", MOST + 3000)
    with run_relay():
        box.register("send", event="paid")
        given = box.work_until("paid", "send", seqs[:MOST])
    with run_relay():
        given += box.work_until("paid", "send", seqs[len(given) :])
        box.await_attached("send")
    assert given == seqs


def test_a_lost_main_stream_is_fed_again_from_what_is_done(box: Any, relay: Any, wait_for: Callable[..., Any]) -> None:
    box.subscribe("send", event="paid")
    done, open_ = box.add("paid", 2), box.add("paid", 3)
    box.await_seqs(done + open_, "paid")
    box.finish("send", box.read("paid", "send", count=2))
    box.redis.delete("outbox:{paid}")
    later = box.add("paid")
    given: list[int] = []

    def all_given() -> bool:
        given.extend(box.work("paid", "send"))
        return set(given) >= {*open_, *later}

    wait_for(all_given, "what was lost")
    assert given == open_ + later
    box.await_attached("send")
    more = box.add("paid", 2)
    assert box.work_until("paid", "send", more) == more


def test_the_lost_tail_of_a_stream_is_not_appended_over(box: Any, relay: Any, wait_for: Callable[..., Any]) -> None:
    box.subscribe("send", event="paid")
    box.await_seqs(box.add("paid"), "paid")
    [(kept, fields)] = box.entries("paid")
    box.await_seqs([1, *box.add("paid", 2)], "paid")
    # As a failover to a replica that lacks the last entries leaves it.
    pipeline = box.redis.pipeline(transaction=True)
    pipeline.delete("outbox:{paid}")
    pipeline.xadd("outbox:{paid}", fields, id=str(kept))
    pipeline.execute()
    later = box.add("paid")
    given: list[int] = []

    def all_given() -> bool:
        given.extend(box.work("paid", "send"))
        return set(given) >= {2, 3, *later}

    wait_for(all_given, "what was lost")
    assert sorted(given) == [1, 2, 3, *later]
    box.await_attached("send")
    assert box.seqs("paid") == [1]


def test_an_emptied_redis_is_noticed_while_nothing_is_added(box: Any, relay: Any, wait_for: Callable[..., Any]) -> None:
    box.subscribe("send", "count", event="paid")
    seqs = box.add("paid", 3)
    box.await_seqs(seqs, "paid")
    box.redis.flushall()
    assert box.work_until("paid", "send", seqs) == seqs
    assert box.work_until("paid", "count", seqs) == seqs
    box.await_attached("send", "count")
    assert box.redis.get("outbox:owner")


def test_a_lost_catch_up_stream_is_fed_again(box: Any, relay: Any, wait_for: Callable[..., Any]) -> None:
    seqs = box.add_ticked("paid", MOST + OVER + 1000)
    box.register("send", event="paid")
    wait_for(lambda: box.redis.xlen("outbox:{paid}:send") >= MOST, "the full stream")
    box.finish("send", box.read("paid", "send", count=10))
    box.redis.delete("outbox:{paid}:send")
    assert box.work_until("paid", "send", seqs[10:]) == seqs[10:]
    box.await_attached("send")


def test_an_entry_of_another_leader_is_taken_as_published(box: Any, relay: Any, wait_for: Callable[..., Any]) -> None:
    box.subscribe("send", event="paid")
    box.await_seqs(box.add("paid"), "paid")
    [(position, fields)] = box.entries("paid")
    # What a leader leaves that was cut off between its append and its bookmark.
    box.redis.xadd("outbox:{paid}", fields | {b"id": b"x"}, id=str(Position(position.tick, position.seq + 1)))
    seqs = box.add("paid", 2)
    wait_for(lambda: len(box.entries("paid")) == 4, "the events")
    assert box.seqs("paid")[-2:] == seqs
    assert box.attached("send")


def test_an_event_name_goes_on_after_a_pause_longer_than_the_window(
    box: Any, relay: Any, wait_for: Callable[..., Any]
) -> None:
    """Transaction ids are the cluster's: another database can use up any number of them between two ticks."""
    box.subscribe("send", event="paid")
    assert box.work_until("paid", "send", box.add("paid")) == [1]
    wait_for(lambda: box.handler("send")[1].seq >= 1, "done_to")
    box.sql.execute(
        "CREATE TEMP TABLE burnt (id int); DO $$ BEGIN FOR i IN 1..50100 LOOP"
        " BEGIN INSERT INTO burnt VALUES (i); EXCEPTION WHEN OTHERS THEN RAISE; END; END LOOP; END $$"
    )
    seqs = box.add("paid")
    assert box.work_until("paid", "send", seqs) == seqs
    position = box.entries("paid")[-1][0]
    wait_for(lambda: box.handler("send")[1] >= position, "done_to")
    box.sql.execute("INSERT INTO outbox.handler (name, event_name) VALUES ('whole', 'sent')")
    sent = box.add("sent")
    assert box.work_until("sent", "whole", sent) == sent
    box.await_attached("whole")


def test_the_time_that_the_server_takes_to_sort_a_read_counts_when_the_next_is_sized(
    box: Any, relay: Any, monkeypatch: pytest.MonkeyPatch, wait_for: Callable[..., Any]
) -> None:
    seen: list[float] = []

    def note(most: int, seconds: float) -> int:
        seen.append(seconds)
        return next_most(most, seconds)

    class SlowToOpen(tick.open_cursor):
        def __init__(self, connection: Any, *arguments: Any) -> None:
            connection.execute("SELECT pg_sleep(0.05)")
            super().__init__(connection, *arguments)

    box.subscribe("first", event="paid")
    monkeypatch.setattr(catch_up, "next_most", note)
    monkeypatch.setattr(tick, "open_cursor", SlowToOpen)
    box.add("paid", 3)
    box.sql.execute("INSERT INTO outbox.handler (name, event_name, start_at) VALUES ('new', 'paid', '-infinity')")
    box.sql.execute("NOTIFY outbox")
    box.await_attached("new")
    assert seen
    assert min(seen) >= 0.05
