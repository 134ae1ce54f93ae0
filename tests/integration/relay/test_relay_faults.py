"""Redis that goes away or forgets: the relay waits and goes on by itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr

from outbox.settings import Settings

pytestmark = pytest.mark.oldest


@pytest.fixture
def proxy(redis_server: Any, open_proxy: Callable[..., Any]) -> Any:
    """A proxy before Redis."""
    return open_proxy(redis_server.port)


def test_an_append_whose_reply_was_lost_is_not_repeated(
    box: Any, settings: Settings, proxy: Any, run_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    through = settings.model_copy(update={"redis_url": SecretStr(f"redis://127.0.0.1:{proxy.port}/0")})
    with run_relay(through):
        box.subscribe("send", event="paid")
        known = box.add("paid")
        box.await_seqs(known, "paid")
        proxy.mute()
        lost = box.add("paid", 3)
        wait_for(lambda: box.redis.xlen("outbox:{paid}") == 4, "the append")
        proxy.cut()
        box.await_seqs([*known, *lost, *box.add("paid", 2)], "paid")
        assert box.attached("send")


def test_chunks_of_a_large_tick_whose_replies_were_lost_are_not_repeated(
    box: Any, settings: Settings, proxy: Any, run_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    through = settings.model_copy(update={"redis_url": SecretStr(f"redis://127.0.0.1:{proxy.port}/0")})
    with run_relay(through):
        box.subscribe("send", event="paid")
        known = box.add("paid")
        box.await_seqs(known, "paid")
        proxy.mute()
        seqs = box.add("paid", 5000)
        # Two chunks are on their way at a time, the first of them of 250 events.
        wait_for(lambda: box.redis.xlen("outbox:{paid}") > 251, "the second chunk")
        proxy.cut()
        box.await_seqs([*known, *seqs, *box.add("paid")], "paid")
        assert box.attached("send")


def test_redis_that_is_away_at_the_start_is_waited_for(
    box: Any, redis_server: Any, start_relay: Callable[..., Any]
) -> None:
    redis_server.kill()
    relay = start_relay()
    relay.await_line("redis.away")
    box.register("send", event="paid")
    seqs = box.add("paid", 3)
    redis_server.start()
    box.await_seqs(seqs, "paid", "send")


def test_redis_that_is_killed_in_the_middle_and_comes_back_empty_loses_nothing(
    box: Any, redis_server: Any, relay: Any
) -> None:
    box.subscribe("send", event="paid")
    before = box.add("paid", 3)
    box.await_seqs(before, "paid")
    redis_server.kill()
    meanwhile = box.add("paid", 3)
    redis_server.start()
    assert box.work_until("paid", "send", before + meanwhile) == before + meanwhile
    box.await_attached("send")
    after = box.add("paid", 3)
    assert box.work_until("paid", "send", after) == after


def test_events_that_are_added_while_redis_is_frozen_arrive_once(
    box: Any, redis_server: Any, relay: Any, wait_for: Callable[..., Any]
) -> None:
    box.subscribe("send", event="paid")
    box.await_seqs(box.add("paid"), "paid")
    known = box.ticks()[-1]
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        box.add("paid", 3)
        wait_for(lambda: box.ticks()[-1] > known, "the committed tick")
        box.add("paid", 2)
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)
    box.await_seqs([1, 2, 3, 4, 5, 6], "paid")
    assert box.attached("send")


def test_an_append_that_was_cut_off_is_sent_again(box: Any, relay: Any, wait_for: Callable[..., Any]) -> None:
    box.subscribe("send", event="paid")
    # The script is loaded by now: Redis 6.2 makes that wait too.
    first = box.add("paid")
    box.await_seqs(first, "paid")
    box.redis.client_pause(60_000, all=False)
    known = box.ticks()[-1]
    seqs = box.add("paid", 3)
    wait_for(lambda: box.ticks()[-1] > known, "the committed tick")
    wait_for(
        lambda: any(client["cmd"].startswith("evalsha") for client in box.redis.client_list()), "the waiting append"
    )
    box.redis.client_kill_filter(_type="normal", skipme=True)
    box.redis.client_unpause()
    box.await_seqs([*first, *seqs, *box.add("paid")], "paid")


def test_a_script_that_redis_forgot_is_loaded_again(box: Any, relay: Any) -> None:
    box.subscribe("send", event="paid")
    first = box.add("paid")
    box.await_seqs(first, "paid")
    box.redis.script_flush()
    box.await_seqs([*first, *box.add("paid", 2)], "paid")


def test_redis_without_memory_is_waited_for(
    box: Any, start_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    relay = start_relay()
    box.subscribe("send", event="paid")
    box.await_seqs(box.add("paid"), "paid")
    box.redis.config_set("maxmemory", 1)
    seqs = box.add("paid", 2)
    relay.await_line("redis.away")
    assert box.redis.xlen("outbox:{paid}") == 1
    box.redis.config_set("maxmemory", 0)
    box.await_seqs([1, *seqs], "paid")


def test_a_group_that_was_destroyed_is_made_again(box: Any, relay: Any) -> None:
    box.subscribe("send", event="paid")
    seqs = box.add("paid", 2)
    box.await_seqs(seqs, "paid")
    box.redis.xgroup_destroy("outbox:{paid}", "send")
    assert box.work_until("paid", "send", seqs) == seqs


def test_connections_to_postgresql_that_are_ended_are_made_again(
    box: Any, relay: Any, wait_for: Callable[..., Any]
) -> None:
    box.subscribe("send", event="paid")
    for _ in range(3):
        before = box.await_leader()
        box.sql.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'outbox %' AND datname = current_database() AND pid <> pg_backend_pid()"
        )
        wait_for(lambda before=before: box.leaders() not in ([], [before]), "another session that leads")
    seqs = box.add("paid", 3)
    assert box.work_until("paid", "send", seqs) == seqs
