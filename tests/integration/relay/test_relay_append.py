"""Compare and append, against a real Redis: nothing twice, nothing over a hole, nothing by who no longer leads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis as redis_client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outbox.errors import LeadershipLostError
from outbox.position import ORIGIN, Position
from relay.append import Append, Appender, Lost
from relay.patience import Patience
from relay.wire import ENTRY, Entries

pytestmark = pytest.mark.oldest

KEY = "outbox:{paid}"


@pytest.fixture
def redis(redis_server: Any) -> Iterator[redis_client.Redis]:
    with redis_client.Redis.from_url(redis_server.url) as client:
        yield client


def never(seconds: float) -> None:
    raise AssertionError("Redis is there, nothing is to be waited for")


def appender(client: redis_client.Redis, *, leads: bool = True) -> Appender:
    def check_lead() -> None:
        if not leads:
            raise LeadershipLostError("another relay leads now")

    return Appender(client, Patience(never), check_lead=check_lead)


def entries(*positions: Position) -> Append:
    made = Entries()
    for position in positions:
        values = [str(position).encode(), b"id", b"", b"{}", b"", b"0"]
        made.ids.append(values[0])
        made.packed.append(ENTRY % tuple(part for value in values for part in (len(value), value)))
    return Append(KEY, b"paid", made)


def stream(client: redis_client.Redis) -> list[Position]:
    return [Position.parse(number) for number, _ in client.xrange(KEY)]


def add_by_hand(client: redis_client.Redis, *positions: Position) -> None:
    for position in positions:
        client.xadd(KEY, {"id": "theirs"}, id=str(position))


def at(*seqs: int) -> list[Position]:
    return [Position(1, seq) for seq in seqs]


def test_what_another_leader_has_appended_is_left_out(redis: redis_client.Redis) -> None:
    add_by_hand(redis, *at(1, 2))
    mine = appender(redis)
    mine.submit([entries(*at(1, 2, 3, 4))])
    assert mine.settle() == []
    assert stream(redis) == at(1, 2, 3, 4)
    assert mine.last[KEY] == b"1-4"


def test_who_no_longer_leads_appends_nothing(redis: redis_client.Redis) -> None:
    zombie = appender(redis, leads=False)
    zombie.submit([entries(*at(1))])
    assert zombie.settle() == []
    add_by_hand(redis, *at(2, 3))
    zombie.submit([entries(*at(2, 3, 4, 5))])
    with pytest.raises(LeadershipLostError):
        zombie.settle()
    assert stream(redis) == at(1, 2, 3)


def test_nothing_is_appended_over_a_hole(redis: redis_client.Redis) -> None:
    mine = appender(redis)
    mine.submit([entries(*at(1, 2))])
    mine.settle()
    redis.delete(KEY)
    mine.submit([entries(*at(3, 4))])
    assert mine.settle() == [Lost(KEY, Position(1, 2), ORIGIN)]
    assert stream(redis) == []


def test_what_follows_a_loss_on_its_way_is_not_appended_either(redis: redis_client.Redis) -> None:
    mine = appender(redis)
    mine.submit([entries(*at(1, 2))])
    mine.settle()
    redis.delete(KEY)
    mine.submit([entries(*at(3))])
    mine.submit([entries(*at(4))])
    assert [loss.actual for loss in mine.settle()] == [ORIGIN]
    mine.expect(KEY, ORIGIN)
    assert mine.settle() == []
    assert stream(redis) == []


def test_a_trimmed_stream_has_lost_nothing(redis: redis_client.Redis) -> None:
    mine = appender(redis)
    mine.submit([entries(*at(1, 2))])
    mine.settle()
    redis.xtrim(KEY, maxlen=0, approximate=False)
    mine.submit([entries(*at(3))])
    assert mine.settle() == []
    assert stream(redis) == at(3)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 20), st.integers(1, 3))
def test_a_log_of_which_another_leader_published_any_part_is_published_once(
    redis: redis_client.Redis, sizes: list[int], theirs: int, in_flight: int
) -> None:
    redis.delete(KEY)
    log = at(*range(1, sum(sizes) + 1))
    chunks = [log[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
    add_by_hand(redis, *log[:theirs])
    mine = appender(redis)
    for chunk in chunks:
        mine.submit([entries(*chunk)])
        if mine.in_flight == in_flight:
            assert mine.settle() == []
    while mine.in_flight:
        assert mine.settle() == []
    mine.close()
    assert stream(redis) == log
