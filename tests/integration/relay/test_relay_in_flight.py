"""Compare and append with two submissions on their way: whatever is lost, everything stands there once."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from relay import wire
from relay.append import Append, Appender
from relay.patience import Patience
from relay.wire import Entries

pytestmark = pytest.mark.oldest

MOST_PAUSES = 500


class GaveUpError(Exception):
    """The appender waited for something that did not come."""


@pytest.fixture
def appender(redis_server: Any) -> Appender:
    pauses = 0

    def pause(seconds: float) -> None:
        nonlocal pauses
        pauses += 1
        if pauses > MOST_PAUSES:
            raise GaveUpError
        time.sleep(min(seconds, 0.02))

    client = redis.Redis.from_url(redis_server.url, protocol=2, socket_timeout=2)
    return Appender(client, Patience(pause), check_lead=lambda: None)


@pytest.fixture
def bystander(redis_server: Any) -> redis.Redis:
    return redis.Redis.from_url(redis_server.url)


def chunk(*seqs: int) -> list[Append]:
    entries = Entries()
    for seq in seqs:
        arguments = (b"5-%d" % seq, b"id", b"", b"{}", b"", b"0")
        entries.ids.append(arguments[0])
        entries.packed.append(wire.ENTRY % tuple(part for value in arguments for part in (len(value), value)))
    return [Append("s", b"told", entries)]


def seqs(client: redis.Redis) -> list[int]:
    return [int(number.split(b"-")[1]) for number, _ in client.xrange("s")]


def test_both_are_appended_and_both_replies_are_lost(appender: Appender, bystander: redis.Redis) -> None:
    appender.submit(chunk(1, 2))
    appender.submit(chunk(3, 4))
    while bystander.xlen("s") < 4:
        time.sleep(0.001)
    appender.close()
    assert appender.settle() == []
    assert appender.settle() == []
    appender.submit(chunk(5))
    assert appender.settle() == []
    assert seqs(bystander) == [1, 2, 3, 4, 5]


def test_a_dead_leader_had_appended_more_than_anybody_noted(appender: Appender, bystander: redis.Redis) -> None:
    for seq in range(1, 7):
        bystander.xadd("s", {"id": "x"}, id=f"5-{seq}")
    appender.submit(chunk(1, 2))
    appender.submit(chunk(3, 4))
    assert appender.settle() == []
    appender.submit(chunk(5, 6))
    assert appender.settle() == []
    assert appender.settle() == []
    assert seqs(bystander) == [1, 2, 3, 4, 5, 6]


def test_redis_is_away_when_both_are_submitted(appender: Appender, redis_server: Any, bystander: redis.Redis) -> None:
    redis_server.kill()
    appender.submit(chunk(1, 2))
    appender.submit(chunk(3, 4))
    redis_server.start()
    assert appender.settle() == []
    assert appender.settle() == []
    assert seqs(bystander) == [1, 2, 3, 4]


def test_what_follows_a_lost_end_is_not_appended_over_the_hole(appender: Appender, bystander: redis.Redis) -> None:
    appender.submit(chunk(1, 2))
    assert appender.settle() == []
    bystander.delete("s")
    appender.submit(chunk(3, 4))
    appender.submit(chunk(5, 6))
    (loss,) = appender.settle()
    assert (str(loss.expected), str(loss.actual)) == ("5-2", "0-0")
    appender.expect("s", loss.actual)
    assert appender.settle() == []
    assert bystander.exists("s") == 0
