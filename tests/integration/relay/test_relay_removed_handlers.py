"""Handlers that no worker serves any more, and handlers that are deleted: they hold up nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.oldest

NODE = 200
"""More entries than one node of a stream holds; trimming leaves the rest of a node."""


def test_a_handler_that_nobody_serves_holds_up_no_other(box: Any, relay: Any, wait_for: Callable[..., Any]) -> None:
    box.subscribe("send", "gone", event="paid")
    seqs = box.add("paid", 3 * NODE)
    assert box.work_until("paid", "send", seqs) == seqs
    last = box.entries("paid")[-1][0]
    wait_for(lambda: box.handler("send")[1] >= last, "done_to")
    assert box.handler("gone")[1] < last
    assert box.redis.xlen("outbox:{paid}") == len(seqs)


def test_a_handler_whose_row_is_deleted_gives_its_stream_free(
    box: Any, relay: Any, wait_for: Callable[..., Any]
) -> None:
    box.subscribe("send", "gone", event="paid")
    seqs = box.add("paid", 3 * NODE)
    assert box.work_until("paid", "send", seqs) == seqs
    box.sql.execute("DELETE FROM outbox.handler WHERE name = 'gone'")
    wait_for(lambda: box.redis.xlen("outbox:{paid}") < NODE, "trimming")
    more = box.add("paid", 2)
    assert box.work_until("paid", "send", more) == more


def test_a_handler_whose_row_is_deleted_while_it_is_fed_stops_nothing(
    box: Any, relay: Any, wait_for: Callable[..., Any]
) -> None:
    box.add("paid", 12_000)
    box.register("gone", event="paid")
    wait_for(lambda: box.redis.xlen("outbox:{paid}:gone") >= 10_000, "the full stream")
    box.sql.execute("DELETE FROM outbox.handler WHERE name = 'gone'")
    box.subscribe("send", event="sent")
    seqs = box.add("sent", 3)
    assert box.work_until("sent", "send", seqs) == seqs


def test_the_last_handler_of_an_event_may_go_and_come_back(box: Any, relay: Any) -> None:
    box.subscribe("send", event="paid")
    first = box.add("paid", 2)
    assert box.work_until("paid", "send", first) == first
    box.sql.execute("DELETE FROM outbox.handler WHERE name = 'send'")
    meanwhile = box.add("paid", 2)
    box.subscribe("other", event="sent")
    box.register("send", event="paid")
    assert box.work_until("paid", "send", meanwhile) == meanwhile
    box.await_attached("send")
    last = box.add("paid", 2)
    assert box.work_until("paid", "send", last) == last
