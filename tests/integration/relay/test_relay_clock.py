"""Clocks that jump an hour: order and liveness do not rest on them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from outbox.position import END, Position
from relay import pacing

HOUR = 3_600_000
"""Milliseconds."""


def test_ticks_go_on_behind_those_of_a_clock_that_was_an_hour_ahead(box: Any, run_relay: Callable[..., Any]) -> None:
    with run_relay():
        box.subscribe("send", event="paid")
        known = box.add("paid", 2)
        box.await_seqs(known, "paid")
    ahead = box.one(
        "INSERT INTO outbox.tick (id, snapshot, created_at)"
        " SELECT max(id) + %s, pg_current_snapshot(), clock_timestamp() + interval '1 hour' FROM outbox.tick"
        " RETURNING id",
        HOUR,
    )
    box.sql.execute("UPDATE outbox.relay SET tick = %s, seq = %s", [ahead, END])
    with run_relay():
        seqs = box.add("paid", 2)
        box.await_seqs(known + seqs, "paid")
        assert [position.tick for position, _ in box.entries("paid")][2:] == [ahead + 1] * 2
        assert box.attached("send")
        box.subscribe("count", event="paid")
        later = box.add("paid", 2)
        assert box.work_until("paid", "count", later) == later
        assert box.work_until("paid", "send", known + seqs + later) == known + seqs + later


def test_a_clock_that_is_an_hour_behind_redis_and_the_ticks_delays_nothing(
    box: Any, run_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    """Everything that is noted stands an hour in the future, as it does when the clock was set back."""
    with run_relay():
        box.subscribe("send", event="paid")
        assert box.work_until("paid", "send", box.add("paid", 2)) == [1, 2]
    [last] = [position for position, _ in box.entries("paid")][-1:]
    future = Position(last.tick + HOUR, last.seq)
    box.redis.xadd("outbox:{paid}", {"id": "x"}, id=str(future))
    box.redis.xgroup_setid("outbox:{paid}", "send", str(future))
    box.sql.execute("UPDATE outbox.tick SET id = id + %s", [HOUR])
    box.sql.execute("UPDATE outbox.relay SET tick = tick + %s", [HOUR])
    box.sql.execute("UPDATE outbox.stream SET tick = %s, seq = %s", [*future])
    box.sql.execute("UPDATE outbox.handler SET done_tick = done_tick + %s", [HOUR])
    box.sql.execute("SELECT setval('outbox.asleep', extract(epoch FROM clock_timestamp())::bigint + 3600)")
    with run_relay():
        seqs = box.add("paid", 3)
        assert box.work_until("paid", "send", seqs) == seqs
        position = box.entries("paid")[-1][0]
        assert position.tick > future.tick
        wait_for(lambda: box.handler("send")[1] >= position, "done_to")


@pytest.mark.parametrize(
    "silence",
    [
        "DROP TRIGGER wake_relay ON outbox.event",
        "SELECT setval('outbox.asleep', extract(epoch FROM clock_timestamp())::bigint - 3600)",
    ],
    ids=["no trigger", "the flag of an hour ago"],
)
def test_events_are_found_by_polling_when_nothing_notifies(
    box: Any, relay: Any, wait_for: Callable[..., Any], silence: str
) -> None:
    box.subscribe("send", event="paid")
    wait_for(lambda: box.asleep_until() > 0, "the relay's sleep")
    box.sql.execute(silence.encode())
    added = time.monotonic()
    seqs = box.add("paid", 3)
    box.await_seqs(seqs, "paid")
    assert time.monotonic() - added < 2 * pacing.SAFETY_POLL
