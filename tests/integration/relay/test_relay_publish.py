"""What the relay puts on a main stream: entries, ids, batches, and only what is durable."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from outbox import entry
from outbox.position import Position

pytestmark = pytest.mark.oldest


def test_an_entry_holds_the_event_as_it_was_written(relay: Any, box: Any) -> None:
    box.subscribe("send", event="paid")
    number = uuid.uuid4()
    payload = '{"b": 1e16, "a": -0.0,  "text": "grüße \\u00e9 \\"quoted\\""}'
    headers = '{"traceparent": "00-1-2-01"}'
    created = datetime(2026, 11, 20, 23, 59, 59, 123456, tzinfo=UTC)
    box.sql.execute(
        "INSERT INTO outbox.event (id, created_at, name, key, payload, headers) VALUES (%s, %s, 'paid', 'k:1', %s, %s)",
        [number, created, payload, headers],
    )
    box.await_seqs([1], "paid")
    [(_, fields)] = box.entries("paid")
    assert fields == {
        b"id": str(number).encode(),
        b"name": b"paid",
        b"key": b"k:1",
        b"payload": payload.encode(),
        b"headers": headers.encode(),
        b"at": str(entry.to_microseconds(created)).encode(),
    }
    event = entry.decode(fields)
    assert (event.id, event.key, event.payload_json, event.created_at) == (number, "k:1", payload, created)


def test_key_and_headers_are_empty_when_there_are_none(relay: Any, box: Any) -> None:
    box.subscribe("send", event="paid")
    box.add("paid")
    box.await_seqs([1], "paid")
    [(_, fields)] = box.entries("paid")
    assert (fields[b"key"], fields[b"headers"]) == (b"", b"")


def test_an_entry_id_is_the_tick_and_the_seq(relay: Any, box: Any) -> None:
    box.subscribe("send", event="paid")
    seqs = [*box.add("paid", 3), *box.add("paid", 2)]
    box.await_seqs(seqs, "paid")
    ids = [position for position, _ in box.entries("paid")]
    assert ids == sorted(ids)
    assert {position.tick for position in ids} <= set(box.ticks())
    for position in ids:
        snapshot = box.one("SELECT snapshot::text FROM outbox.tick WHERE id = %s", position.tick)
        assert box.one(
            "SELECT pg_visible_in_snapshot(xid, %s::pg_snapshot) FROM outbox.event WHERE seq = %s",
            snapshot, position.seq,
        )  # fmt: skip


def test_tick_ids_rise_and_read_as_times(relay: Any, box: Any) -> None:
    box.subscribe("send", event="paid")
    before = box.one("SELECT extract(epoch FROM clock_timestamp()) * 1000")
    box.await_seqs(box.add("paid"), "paid")
    [(position, _)] = box.entries("paid")
    after = box.one("SELECT extract(epoch FROM clock_timestamp()) * 1000")
    assert before - 1 <= position.tick <= after + 1


def test_a_tick_id_is_above_all_in_redis_after_a_clock_that_was_ahead(
    box: Any, run_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    with run_relay():
        box.subscribe("send", event="paid")
        box.await_seqs(box.add("paid"), "paid")
    ahead = box.ticks()[-1] + 3_600_000
    box.redis.xadd("outbox:{paid}", {"id": "x"}, id=f"{ahead}-1")
    with run_relay():
        seqs = box.add("paid")
        wait_for(lambda: box.seqs("paid")[-1] == seqs[0], "the event")
        assert box.entries("paid")[-1][0] == Position(ahead + 1, seqs[0])


def test_a_name_without_a_handler_is_kept_in_postgresql_only(relay: Any, box: Any) -> None:
    box.subscribe("send", event="paid")
    box.add("unheard")
    box.await_seqs(box.add("paid"), "paid")
    assert not box.redis.exists("outbox:{unheard}")


def test_what_rolled_back_is_never_published(relay: Any, box: Any) -> None:
    box.subscribe("send", event="paid")
    with psycopg.connect(box.settings.libpq_url()) as writer:
        writer.execute("INSERT INTO outbox.event (name, payload) VALUES ('paid', '{}')")
        writer.rollback()
        writer.execute("INSERT INTO outbox.event (name, payload) VALUES ('paid', '{}')")
        with writer.transaction(force_rollback=True):
            writer.execute("INSERT INTO outbox.event (name, payload) VALUES ('paid', '{}')")
        writer.execute("INSERT INTO outbox.event (name, payload) VALUES ('paid', '{}')")
    box.await_seqs([2, 4], "paid")


def test_an_open_transaction_delays_only_its_own_events(relay: Any, box: Any) -> None:
    box.subscribe("send", event="paid")
    with psycopg.connect(box.settings.libpq_url()) as early:
        early.execute("INSERT INTO outbox.event (name, payload) VALUES ('paid', '{}')")
        box.await_seqs(box.add("paid", 2), "paid")
    box.await_seqs([2, 3, 1], "paid")
    ids = [position for position, _ in box.entries("paid")]
    assert ids == sorted(ids)


def test_a_large_transaction_arrives_whole_and_in_order(relay: Any, box: Any) -> None:
    box.subscribe("send", event="paid")
    seqs = box.add("paid", 9000, payload='{"filling": "' + "x" * 300 + '"}')
    box.await_seqs(seqs, "paid")
    assert len({position.tick for position, _ in box.entries("paid")}) == 1


def test_a_tick_is_durable_before_anything_of_it_is_in_redis(
    relay: Any, box: Any, wait_for: Callable[..., Any]
) -> None:
    box.subscribe("send", event="paid")
    box.await_seqs(box.add("paid"), "paid")
    known = box.ticks()[-1]
    box.redis.client_pause(60_000, all=False)
    try:
        seqs = box.add("paid")
        wait_for(lambda: box.ticks()[-1] > known, "the committed tick")
        assert box.redis.xlen("outbox:{paid}") == 1
    finally:
        box.redis.client_unpause()
    box.await_seqs([1, *seqs], "paid")
    assert box.entries("paid")[-1][0] == Position(box.ticks()[-1], seqs[0])


def test_nothing_is_published_while_its_tick_cannot_be_written(
    relay: Any, box: Any, wait_for: Callable[..., Any]
) -> None:
    box.subscribe("send", event="paid")
    with psycopg.connect(box.settings.libpq_url()) as other:
        other.execute("LOCK TABLE outbox.tick IN SHARE MODE")
        seqs = box.add("paid")
        wait_for(lambda: box.relays("wait_event_type = 'Lock'"), "the relay's wait for the lock")
        assert box.entries("paid") == []
    box.await_seqs(seqs, "paid")


def test_a_batch_is_the_same_whoever_publishes_it(
    box: Any, start_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    first = start_relay()
    box.subscribe("send", event="paid")
    box.await_seqs(box.add("paid"), "paid")
    known = box.ticks()[-1]
    box.redis.client_pause(60_000, all=False)
    try:
        ticked = box.add("paid", 3)
        wait_for(lambda: box.ticks()[-1] > known, "the committed tick")
        tick = box.ticks()[-1]
        first.kill()
        later = box.add("paid", 2)
    finally:
        box.redis.client_unpause()
    start_relay()
    box.await_seqs([1, *ticked, *later], "paid")
    ids = [position for position, _ in box.entries("paid")]
    assert ids[1:4] == [Position(tick, seq) for seq in ticked]
    assert all(position.tick > tick for position in ids[4:])
