"""The sweep: `done_to` rises with what is done, holes get a retry, streams are trimmed behind the slowest handler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.oldest

NODE = 200
"""More entries than one node of a stream holds; trimming leaves the rest of a node."""


def test_done_to_rises_to_what_is_published_once_all_is_done(
    box: Any, relay: Any, wait_for: Callable[..., Any]
) -> None:
    box.subscribe("send", event="paid")
    seqs = box.add("paid", 3)
    box.await_seqs(seqs, "paid")
    last = box.entries("paid")[-1][0]
    box.work_until("paid", "send", seqs)
    wait_for(lambda: box.handler("send")[1] >= last, "done_to")


def test_done_to_stops_below_what_is_pending(box: Any, relay: Any, wait_for: Callable[..., Any]) -> None:
    box.subscribe("send", event="paid")
    box.await_seqs(box.add("paid", 5), "paid")
    ids = [position for position, _ in box.entries("paid")]
    read = box.read("paid", "send")
    box.finish("send", [*read[:2], *read[3:]])
    wait_for(lambda: box.handler("send")[1] >= ids[1], "done_to")
    later = box.add("paid")
    box.work_until("paid", "send", later)
    assert ids[1] <= box.handler("send")[1] < ids[2]
    box.finish("send", [read[2]])
    wait_for(lambda: box.handler("send")[1] >= ids[4], "done_to")


def test_done_to_stops_below_what_nobody_has_read(box: Any, relay: Any, wait_for: Callable[..., Any]) -> None:
    box.subscribe("send", event="paid")
    box.await_seqs(box.add("paid", 4), "paid")
    ids = [position for position, _ in box.entries("paid")]
    box.finish("send", box.read("paid", "send", count=2))
    wait_for(lambda: box.handler("send")[1] >= ids[1], "done_to")
    assert box.handler("send")[1] < ids[2]


def test_a_stream_is_trimmed_behind_its_slowest_handler_and_no_further(
    box: Any, relay: Any, wait_for: Callable[..., Any]
) -> None:
    box.subscribe("quick", "slow", event="paid")
    seqs = box.add("paid", 5 * NODE)
    box.await_seqs(seqs, "paid")
    ids = [position for position, _ in box.entries("paid")]
    box.work_until("paid", "quick", seqs)
    open_ = box.read("paid", "slow", count=3 * NODE)
    box.finish("slow", open_[: 2 * NODE])
    wait_for(lambda: box.redis.xlen("outbox:{paid}") < len(seqs), "trimming")
    wait_for(lambda: box.handler("quick")[1] >= ids[-1], "done_to of the quick one")
    wait_for(lambda: box.handler("slow")[1] >= ids[2 * NODE - 1], "done_to of the slow one")
    assert box.handler("slow")[1] < ids[2 * NODE]
    kept = [position for position, _ in box.entries("paid")]
    assert kept[-3 * NODE :] == ids[2 * NODE :]
    box.finish("slow", open_[2 * NODE :])
    assert box.work_until("paid", "slow", seqs[3 * NODE :]) == seqs[3 * NODE :]
    wait_for(lambda: box.redis.xlen("outbox:{paid}") < NODE, "trimming of all")


def test_an_entry_that_was_trimmed_by_someone_else_becomes_a_retry(
    box: Any, relay: Any, wait_for: Callable[..., Any]
) -> None:
    box.subscribe("send", event="paid")
    seqs = box.add("paid", 3)
    box.await_seqs(seqs, "paid")
    box.redis.xtrim("outbox:{paid}", maxlen=1, approximate=False)
    assert box.work("paid", "send") == seqs[-1:]
    retrying = (
        "SELECT array_agg(e.seq ORDER BY e.seq) FROM outbox.delivery d JOIN outbox.event e ON e.id = d.event_id"
        " WHERE d.state = 'retrying' AND d.attempts = 0 AND d.due_at <= clock_timestamp() AND d.handler = 'send'"
    )
    assert wait_for(lambda: box.one(retrying), "the retries") == seqs[:2]


def test_the_last_entries_that_were_trimmed_by_someone_else_before_anybody_read_them_become_retries(
    box: Any, relay: Any, wait_for: Callable[..., Any]
) -> None:
    """Nothing comes behind them that the group could be given, and would show how far it is."""
    box.subscribe("send", event="paid")
    box.await_seqs(box.add("paid", 3), "paid")
    box.redis.xtrim("outbox:{paid}", maxlen=0, approximate=False)
    count = "SELECT count(*) FROM outbox.delivery WHERE state = 'retrying' AND handler = 'send'"
    wait_for(lambda: box.one(count) == 3, "the retries")


def test_a_consumer_that_was_deleted_with_what_it_held_leaves_retries(
    box: Any, relay: Any, wait_for: Callable[..., Any]
) -> None:
    box.subscribe("send", event="paid")
    box.await_seqs(box.add("paid", 3), "paid")
    assert len(box.read("paid", "send")) == 3
    box.redis.xgroup_delconsumer("outbox:{paid}", "send", "hand")
    count = "SELECT count(*) FROM outbox.delivery WHERE state = 'retrying' AND handler = 'send'"
    wait_for(lambda: box.one(count) == 3, "the retries")


def test_holes_of_one_handler_are_no_concern_of_another(box: Any, relay: Any, wait_for: Callable[..., Any]) -> None:
    box.subscribe("send", "count", event="paid")
    box.subscribe("other", event="sent")
    paid, sent = box.add("paid", 2), box.add("sent", 2)
    box.await_seqs(sent, "sent")
    assert box.work_until("paid", "count", paid) == paid
    assert len(box.read("paid", "send")) == 2
    last = box.entries("paid")[-1][0]
    box.redis.xgroup_delconsumer("outbox:{paid}", "send", "hand")
    rows = "SELECT array_agg(DISTINCT handler) FROM outbox.delivery WHERE state = 'retrying'"
    assert wait_for(lambda: box.one(rows), "the retries") == ["send"]
    wait_for(lambda: box.handler("send")[1] >= last, "done_to")
