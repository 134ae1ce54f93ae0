"""A main stream at its maximum is trimmed past its laggards; they are fed from PostgreSQL and attached again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from outbox.names import stream_key
from outbox.position import Position
from relay import bounds, progress, scripts
from relay.bounds import Limit

pytestmark = pytest.mark.oldest

SMALL = Limit(entries=100, size=1 << 20)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAIN", SMALL)


def test_the_sibling_of_a_laggard_notices_nothing(box: Any, relay: Any, wait_for: Callable[..., Any]) -> None:
    box.subscribe("quick", "slow", event="paid")
    seqs, quick = [], []
    for _ in range(40):
        seqs += box.add("paid", 10)
        quick += box.work_until("paid", "quick", seqs[len(quick) :])
        # What was given to the sibling a moment ago may stand there until the laggard is put away.
        assert box.redis.xlen(stream_key("outbox", "paid")) <= SMALL.entries + 10
    assert quick == seqs
    assert box.attached("quick")
    wait_for(lambda: not box.attached("slow"), "the laggard being detached")
    assert box.work_until("paid", "slow", seqs) == seqs
    box.await_attached("slow")
    later = box.add("paid", 3)
    assert box.work_until("paid", "slow", later) == later


def test_a_laggard_finishes_what_it_holds_and_is_fed_what_comes_after(
    box: Any, relay: Any, wait_for: Callable[..., Any]
) -> None:
    box.subscribe("quick", "slow", event="paid")
    first = box.add("paid", 10)
    box.await_seqs(first, "paid")
    held = box.read("paid", "slow")
    assert [Position.parse(number).seq for _, number in held] == first
    rest: list[int] = []
    while box.attached("slow"):
        rest += box.add("paid", 10)
        box.work("paid", "quick")
    rest += box.add("paid", 5)
    assert box.one("SELECT done_seq FROM outbox.handler WHERE name = 'slow'") < first[0]
    box.finish("slow", held)
    assert box.work_until("paid", "slow", rest) == rest
    wait_for(lambda: box.handler("slow")[1].seq >= rest[-1], "done_to behind everything")
    assert box.one("SELECT count(*) FROM outbox.delivery WHERE handler = 'slow' AND state = 'retrying'") == 0


def test_a_stream_that_nobody_keeps_up_with_is_emptied(box: Any, relay: Any, wait_for: Callable[..., Any]) -> None:
    box.subscribe("slow", event="paid")
    seqs: list[int] = []
    while box.attached("slow"):
        seqs += box.add("paid", 10)
    wait_for(lambda: box.redis.xlen(stream_key("outbox", "paid")) == 0, "an empty stream")
    assert box.work_until("paid", "slow", seqs) == seqs
    box.await_attached("slow")


def test_large_events_fill_a_stream_by_their_size(box: Any, relay: Any) -> None:
    box.subscribe("quick", "slow", event="paid")
    payload = '{"text": "' + "x" * 100_000 + '"}'
    seqs: list[int] = []
    while box.attached("slow"):
        seqs += box.add("paid", 1, payload=payload)
        box.work("paid", "quick")
        assert len(seqs) < SMALL.entries
    assert box.redis.xlen(stream_key("outbox", "paid")) <= 6
    assert box.work_until("paid", "slow", seqs) == seqs


@pytest.mark.slow
def test_one_large_transaction_passes_a_laggard(box: Any, relay: Any, wait_for: Callable[..., Any]) -> None:
    box.subscribe("quick", "slow", event="paid")
    seqs = box.add("paid", 20_000)
    assert box.work_until("paid", "slow", seqs) == seqs
    assert box.work_until("paid", "quick", seqs) == seqs
    box.await_attached("quick", "slow")


def test_a_group_left_aside_by_a_relay_that_died_meanwhile_is_put_back(
    box: Any, relay: Any, wait_for: Callable[..., Any]
) -> None:
    box.subscribe("send", event="paid")
    seqs = box.add("paid", 5)
    box.await_seqs(seqs, "paid")
    box.redis.xgroup_setid(stream_key("outbox", "paid"), "send", str(progress.AWAY))
    assert box.work_until("paid", "send", seqs) == seqs
    assert box.attached("send")


def test_a_handler_whose_group_was_destroyed_is_taken_off_like_one_that_is_behind(box: Any) -> None:
    box.redis.xadd("paid", {"id": "x"}, id="7-1")
    away = str(progress.AWAY)
    answers = [box.redis.eval(scripts.lua("detach"), 1, "paid", "send", "5-0", away) for _ in range(2)]
    assert answers == [away.encode()] * 2
    assert [each["last-delivered-id"] for each in box.redis.xinfo_groups("paid")] == [away.encode()]
