"""Redis that refuses to write, evicts, loses its tail, fails over, freezes or hangs up: nothing is lost, none twice."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis as redis_client
from pydantic import SecretStr

from console.servers import Redis, free_port
from outbox.settings import Settings
from relay.bounds import CATCH_UP

pytestmark = pytest.mark.oldest

STREAM = "outbox:{paid}"


@pytest.fixture
def make_redis(scratch: Path, redis_server: Redis) -> Iterator[Callable[..., Redis]]:
    """Start further servers of the kind that is tested: `make_redis(persistent=True)`."""
    made: list[Redis] = []

    def make(**options: Any) -> Redis:
        folder = scratch / f"redis-{uuid.uuid4().hex[:8]}"
        made.append(Redis(folder, program=redis_server.program, **options).start())
        return made[-1]

    yield make
    for server in made:
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)


def at(settings: Settings, port: int) -> Settings:
    return settings.model_copy(update={"redis_url": SecretStr(f"redis://127.0.0.1:{port}/0")})


# Refusing to write


def break_saving(client: Any, server: Redis) -> None:
    """A disk that takes no snapshot: MISCONF."""
    (server.folder / "dump.rdb").mkdir()
    client.config_set("save", "3600 1")
    client.bgsave()
    while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
        time.sleep(0.005)


def mend_saving(client: Any, server: Redis) -> None:
    (server.folder / "dump.rdb").rmdir()
    client.bgsave()


def demote(client: Any, server: Redis) -> None:
    """A replica: READONLY."""
    client.replicaof("127.0.0.1", free_port())


def promote(client: Any, server: Redis) -> None:
    client.replicaof("NO", "ONE")


def want_replicas(client: Any, server: Redis) -> None:
    """A primary without the replicas that it must have: NOREPLICAS."""
    client.config_set("min-replicas-to-write", 1)


def want_none(client: Any, server: Redis) -> None:
    client.config_set("min-replicas-to-write", 0)


@pytest.mark.parametrize(
    ("refuse", "relent", "why"),
    [
        (break_saving, mend_saving, "MISCONF"),
        (demote, promote, "read only replica"),
        (want_replicas, want_none, "NOREPLICAS"),
    ],
    ids=["disk full", "read-only", "no replicas"],
)
def test_a_redis_that_refuses_to_write_is_waited_for(
    box: Any,
    redis_server: Redis,
    start_relay: Callable[..., Any],
    refuse: Callable[..., None],
    relent: Callable[..., None],
    why: str,
) -> None:
    relay = start_relay()
    box.subscribe("send", event="paid")
    known = box.add("paid")
    box.await_seqs(known, "paid")
    refuse(box.redis, redis_server)
    seqs = box.add("paid", 3)
    relay.await_line("redis.away")
    relay.await_line(why)
    assert box.redis.xlen(STREAM) == 1
    relent(box.redis, redis_server)
    box.await_seqs(known + seqs, "paid")
    assert box.work_until("paid", "send", known + seqs) == known + seqs
    assert box.attached("send")


# Forgetting


def test_a_redis_that_evicts_whole_streams_is_named_at_the_start_and_costs_nothing(
    box: Any, start_relay: Callable[..., Any]
) -> None:
    box.redis.config_set("maxmemory", 1 << 30)
    box.redis.config_set("maxmemory-policy", "allkeys-lru")
    relay = start_relay()
    relay.await_line("redis.evicts")
    box.subscribe("send", event="paid")
    seqs = box.add("paid", 5)
    box.await_seqs(seqs, "paid")
    box.finish("send", box.read("paid", "send", count=2))
    box.redis.config_set("maxmemory", 1)
    with contextlib.suppress(redis_client.ResponseError):
        box.redis.set("another", "service")
    assert not box.redis.exists(STREAM)
    box.redis.config_set("maxmemory", 0)
    assert box.work_until("paid", "send", seqs[2:]) == seqs[2:]
    box.await_attached("send")


def test_a_relay_whose_prefix_another_database_took_while_redis_was_empty_stops(
    box: Any, start_relay: Callable[..., Any]
) -> None:
    relay = start_relay()
    box.subscribe("send", event="paid")
    box.await_seqs(box.add("paid"), "paid")
    with box.redis.pipeline(transaction=True) as forgetting:
        forgetting.flushall()
        forgetting.set("outbox:owner", "1/other/outbox")
        forgetting.execute()
    assert relay.popen.wait(timeout=60) == 1
    assert "belongs to 1/other/outbox" in relay.output()
    assert "Traceback" not in relay.output()


def test_what_redis_lost_while_no_relay_ran_is_noticed_at_the_start(box: Any, run_relay: Callable[..., Any]) -> None:
    with run_relay():
        box.subscribe("send", event="paid")
        seqs = box.add("paid", 3)
        box.await_seqs(seqs, "paid")
    box.redis.flushall()
    with run_relay():
        assert box.work_until("paid", "send", seqs) == seqs
        box.await_attached("send")


def test_what_a_feed_had_put_on_a_stream_that_was_lost_while_no_relay_ran_is_retried(
    box: Any, run_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    with run_relay():
        seqs = box.add("paid", CATCH_UP.entries + 2000)
        box.register("send", event="paid")
        wait_for(lambda: box.redis.xlen(f"{STREAM}:send") >= CATCH_UP.entries, "the full stream")
    box.redis.delete(f"{STREAM}:send")
    covered = (
        "SELECT count(*) FROM outbox.delivery WHERE handler = 'send'"
        " AND (state = 'done' OR state = 'retrying' AND due_at <= clock_timestamp())"
    )
    with run_relay():

        def all_covered() -> bool:
            box.work("paid", "send")
            return bool(box.one(covered) == len(seqs))

        wait_for(all_covered, "an outcome or a retry for every event")
        box.await_attached("send")


def test_the_lost_tail_of_an_append_only_file_is_fed_again(
    box: Any, settings: Settings, make_redis: Callable[..., Redis], run_relay: Callable[..., Any]
) -> None:
    server = make_redis(persistent=True, options={"appendfsync": "always"})
    box.redis = redis_client.Redis.from_url(server.url)
    with run_relay(at(settings, server.port)):
        box.subscribe("send", event="paid")
        kept = box.add("paid", 3)
        box.await_seqs(kept, "paid")
        [log] = [*server.folder.glob("appendonly.aof"), *server.folder.glob("appendonlydir/*.incr.aof")]
        whole = log.stat().st_size
        lost = box.add("paid", 3)
        box.await_seqs(kept + lost, "paid")
        server.kill()
        # In the middle of a command.
        os.truncate(log, whole + 20)
        server.start()
        later = box.add("paid", 2)
        given = box.work_until("paid", "send", kept + lost + later)
        assert sorted(given) == kept + lost + later
        box.await_attached("send")


def test_a_lost_backlog_comes_back_within_seconds_and_the_log_says_how_far_it_is(
    box: Any, start_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    relay = start_relay()
    box.subscribe("send", event="paid")
    seqs = box.add("paid", 2 * CATCH_UP.entries)
    wait_for(lambda: box.redis.xlen(STREAM) == len(seqs), "all events on the stream")
    lost = time.monotonic()
    box.redis.flushall()
    given: list[int] = []

    def told() -> bool:
        entries = box.read("paid", "send", count=200)
        box.finish("send", entries)
        given.extend(int(number.split(b"-")[1]) for _, number in entries)
        return "feed.progress" in relay.output()

    wait_for(told, "progress in the log")
    [line, *_] = [line for line in relay.output().splitlines() if "feed.progress" in line]
    assert "handler=send" in line
    assert 0 < int(line.split("percent=")[1].split()[0]) <= 100
    given += box.work_until("paid", "send", seqs[len(given) :])
    assert given == seqs
    box.await_attached("send")
    assert time.monotonic() - lost < 20


# Failing over


@pytest.fixture
def pair(redis_server: Redis, make_redis: Callable[..., Redis]) -> tuple[Redis, Any]:
    """A replica of the test's Redis, and a client of it."""
    replica = make_redis()
    client = redis_client.Redis.from_url(replica.url)
    for each in (client, redis_client.Redis.from_url(redis_server.url)):
        # They need not wait for further replicas to come.
        each.config_set("repl-diskless-sync-delay", 0)
    client.replicaof("127.0.0.1", redis_server.port)
    return replica, client


def test_a_failover_to_a_replica_that_lacks_entries_and_acknowledgements_loses_and_doubles_nothing(
    box: Any,
    settings: Settings,
    redis_server: Redis,
    pair: tuple[Redis, Any],
    open_proxy: Callable[..., Any],
    run_relay: Callable[..., Any],
    wait_for: Callable[..., Any],
) -> None:
    replica, at_replica = pair
    proxy = open_proxy(redis_server.port)
    with run_relay(at(settings, proxy.port)):
        box.subscribe("send", event="paid")
        there = box.add("paid", 5)
        box.await_seqs(there, "paid")
        wait_for(lambda: at_replica.xlen(STREAM) == 5, "the replica")
        # It keeps what it has and gets no more.
        at_replica.replicaof("127.0.0.1", free_port())
        missing = box.add("paid", 3)
        box.await_seqs(there + missing, "paid")
        read = box.read("paid", "send")
        box.finish("send", [*read[:2], read[5]])
        redis_server.kill()
        at_replica.replicaof("NO", "ONE")
        box.redis = at_replica
        proxy.target = replica.port
        later = box.add("paid", 2)
        owed = {*there[2:], *missing[1:], *later}
        given: list[int] = []

        def all_given() -> bool:
            given.extend(box.work("paid", "send"))
            return set(given) >= owed

        wait_for(all_given, "what the replica lacked")
        box.await_attached("send")
        assert missing[0] not in given, "done already, though its acknowledgement was lost"
        assert box.one("SELECT count(*) FROM outbox.delivery WHERE state = 'done'") == 10


def test_a_primary_that_was_demoted_behind_open_connections_is_left_for_its_successor(
    box: Any,
    settings: Settings,
    redis_server: Redis,
    pair: tuple[Redis, Any],
    open_proxy: Callable[..., Any],
    run_relay: Callable[..., Any],
    wait_for: Callable[..., Any],
) -> None:
    replica, at_replica = pair
    proxy = open_proxy(redis_server.port)
    with run_relay(at(settings, proxy.port)):
        box.subscribe("send", event="paid")
        seqs = box.add("paid", 3)
        box.await_seqs(seqs, "paid")
        wait_for(lambda: at_replica.xlen(STREAM) == 3, "the replica")
        box.redis.client_pause(2000, all=False)
        at_replica.replicaof("NO", "ONE")
        box.redis.replicaof("127.0.0.1", replica.port)
        box.redis.client_unpause()
        box.redis = at_replica
        proxy.target = replica.port
        seqs += box.add("paid", 3)
        box.await_seqs(seqs, "paid")
        assert box.work_until("paid", "send", seqs) == seqs
        last = box.entries("paid")[-1][0]
        wait_for(lambda: box.handler("send")[1] >= last, "done_to, which the sweep's connection must reach")


# Going away


def test_clients_that_are_killed_again_and_again_lose_nothing(
    box: Any, relay: Any, wait_for: Callable[..., Any]
) -> None:
    box.subscribe("send", event="paid")
    over = threading.Event()

    def storm() -> None:
        with redis_client.Redis.from_url(box.settings.redis_url.get_secret_value()) as client:
            while not over.wait(0.005):
                client.client_kill_filter(_type="normal", skipme=True)

    thread = threading.Thread(target=storm, daemon=True)
    thread.start()
    try:
        seqs = [seq for _ in range(40) for seq in box.add("paid", 100)]
    finally:
        over.set()
        thread.join(10)
    box.await_seqs(seqs, "paid")
    assert box.attached("send")
    assert box.work_until("paid", "send", seqs) == seqs


@pytest.mark.slow
def test_a_redis_that_freezes_for_longer_than_every_timeout_costs_neither_the_lead_nor_any_writer(
    box: Any, redis_server: Redis, relay: Any, wait_for: Callable[..., Any]
) -> None:
    box.subscribe("send", event="paid")
    seqs = box.add("paid")
    box.await_seqs(seqs, "paid")
    leader = box.leaders()
    longest = 0.0
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        frozen = time.monotonic()
        with psycopg.connect(box.settings.libpq_url(), autocommit=True) as writer:

            def write() -> bool:
                nonlocal longest
                began = time.monotonic()
                row = writer.execute(
                    "INSERT INTO outbox.event (name, payload) VALUES ('paid', '{}') RETURNING seq"
                ).fetchone()
                assert row is not None
                longest = max(longest, time.monotonic() - began)
                seqs.append(row[0])
                assert box.leaders() == leader
                # Above the ten seconds after which the server ends a session that is silent.
                return time.monotonic() - frozen > 12

            wait_for(write, "the end of the frost")
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)
    thawed = time.monotonic()
    box.await_seqs(seqs, "paid")
    assert time.monotonic() - thawed < 10
    assert longest < 1
    assert box.leaders() == leader
    assert box.attached("send")
