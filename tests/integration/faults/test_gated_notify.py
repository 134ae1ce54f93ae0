"""A sleeping relay wakes for every commit, also for those whose writers did not know that it sleeps.

The relay polls every `SAFETY_POLL` seconds whatever happens. Each test commits right after such a poll, so that what is
published soon can only have been published because the relay was awake or was woken.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import psycopg
import pytest

from relay import pacing

pytestmark = pytest.mark.slow

SOON = pacing.SAFETY_POLL / 2
"""Seconds: far more than a wake-up takes, and well before the next safety poll."""

INSERT = "INSERT INTO outbox.event (name, payload) VALUES ('told', json_build_object('n', %s::int)) RETURNING seq"


@pytest.fixture
def relaying(cast: Any) -> Any:
    """A relay that publishes the events `told`."""
    cast.relay()
    cast.register("listener", "told")
    cast.await_attached()
    return cast


@pytest.fixture
def writer(relaying: Any) -> Iterator[psycopg.Connection]:
    with psycopg.connect(relaying.settings.libpq_url()) as connection:
        yield connection


def await_renewal(cast: Any) -> None:
    """Wait until the sleeping relay has just polled and renewed its flag."""
    known = cast.wait_for(lambda: cast.asleep() and cast.asleep_until(), "the relay to fall asleep")
    cast.wait_for(lambda: cast.asleep_until() > known, "the relay to renew its flag")


def await_published(cast: Any, seq: int) -> float:
    """Seconds until the event stands in the stream."""
    began = time.monotonic()
    cast.wait_for(lambda: published(cast, seq), f"event {seq} to be published")
    return time.monotonic() - began


def published(cast: Any, seq: int) -> bool:
    last = cast.redis.xrevrange("outbox:{told}", count=1)
    return bool(last) and last[0][0].endswith(b"-%d" % seq)


def insert(connection: psycopg.Connection, n: int = 0) -> int:
    row = connection.execute(INSERT, [n]).fetchone()
    assert row is not None
    return int(row[0])


def keep_awake(cast: Any) -> None:
    """More events at once than the relay would sleep through."""
    cast.sql.execute(
        "INSERT INTO outbox.event (name, payload) SELECT 'told', '{}' FROM generate_series(1, %s)",
        [int(3 * pacing.BUSY_ABOVE)],
    )
    cast.wait_for(lambda: not cast.asleep(), "the relay to wake")


def test_a_commit_wakes_a_sleeping_relay(relaying: Any, writer: psycopg.Connection) -> None:
    for n in range(2):
        await_renewal(relaying)
        seq = insert(writer, n)
        writer.commit()
        assert await_published(relaying, seq) < SOON


def test_a_writer_that_read_awake_is_heard_when_it_commits_after_the_relay_fell_asleep(
    relaying: Any, writer: psycopg.Connection
) -> None:
    keep_awake(relaying)
    seq = insert(writer)
    assert not relaying.asleep(), "the writer must have read `awake`"
    await_renewal(relaying)
    writer.commit()
    assert await_published(relaying, seq) < SOON


def test_a_writer_that_read_awake_is_heard_while_another_one_stays_open(
    relaying: Any, writer: psycopg.Connection
) -> None:
    with psycopg.connect(relaying.settings.libpq_url()) as other:
        keep_awake(relaying)
        late, seq = insert(other), insert(writer)
        assert not relaying.asleep(), "the writers must have read `awake`"
        await_renewal(relaying)
        writer.commit()
        assert await_published(relaying, seq) < SOON
        await_renewal(relaying)
        other.commit()
        began = time.monotonic()
        relaying.wait_for(
            lambda: any(id_.endswith(b"-%d" % late) for id_, _ in relaying.entries("told")), "the late one"
        )
        assert time.monotonic() - began < SOON


@pytest.mark.parametrize("level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
def test_a_snapshot_older_than_the_relays_sleep_does_not_hide_it(
    relaying: Any, writer: psycopg.Connection, level: psycopg.IsolationLevel
) -> None:
    keep_awake(relaying)
    writer.isolation_level = level
    writer.execute("SELECT count(*) FROM outbox.handler")
    assert not relaying.asleep(), "the snapshot must be older than the relay's sleep"
    await_renewal(relaying)
    seq = insert(writer)
    writer.commit()
    assert await_published(relaying, seq) < SOON


def test_a_new_leader_hears_writers_whom_the_dead_one_had_told_nothing(
    relaying: Any, writer: psycopg.Connection
) -> None:
    keep_awake(relaying)
    seq = insert(writer)
    assert not relaying.asleep(), "the writer must have read `awake`"
    relaying.programs[0].kill()
    relaying.relay()
    await_renewal(relaying)
    writer.commit()
    assert await_published(relaying, seq) < SOON


def test_the_relay_rests_once_those_writers_have_ended(relaying: Any, writer: psycopg.Connection) -> None:
    keep_awake(relaying)
    seq = insert(writer)
    assert not relaying.asleep(), "the writer must have read `awake`"
    await_renewal(relaying)
    writer.commit()
    await_published(relaying, seq)
    await_renewal(relaying)
    renewed = relaying.asleep_until()
    spoke = set()
    while relaying.asleep_until() == renewed:
        spoke.add(
            relaying.one("SELECT query_start FROM pg_stat_activity WHERE application_name = 'outbox relay outbox'")
        )
        assert relaying.programs[0].running
    spoke.add(relaying.one("SELECT clock_timestamp()"))
    moments = sorted(moment.timestamp() for moment in spoke)
    assert max(later - earlier for earlier, later in pairwise(moments)) > SOON
