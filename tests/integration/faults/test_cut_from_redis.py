"""Relay and worker whose way to Redis swallows everything, or whose connections are ended all the time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from console.servers import Redis
from outbox.names import stream_key
from outbox.settings import Settings

KILLS = 60


@pytest.fixture
def way(redis_server: Redis, open_proxy: Callable[..., Any]) -> Any:
    """What stands between Redis and everybody else."""
    return open_proxy(redis_server.port)


@pytest.fixture
def settings(database_url: str, way: Any) -> Settings:
    return Settings(database_url=database_url, redis_url=f"redis://127.0.0.1:{way.port}/0", _env_file=None)


@pytest.fixture
def at_redis(redis_server: Redis) -> Iterator[redis.Redis]:
    """The way of the test itself."""
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


def begin(cast: Any) -> tuple[Any, Any]:
    """A relay and a worker at work."""
    relay, worker = cast.relay(), cast.worker()
    cast.wait_for(lambda: cast.one("SELECT count(*) FROM outbox.handler") == 4, "the handlers")
    cast.await_attached()
    return relay, worker


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["nothing", "what was on its way", "the answers"])
def test_a_way_to_redis_that_swallows_everything_for_longer_than_every_timeout_costs_no_effect(
    lost: str, working: Any, way: Any, at_redis: redis.Redis
) -> None:
    relay, worker = begin(working)
    ordered = working.order(50)
    working.wait_for(lambda: working.one("SELECT count(*) FROM effect") > 10, "the first effects")
    leader = working.one("SELECT leader FROM outbox.relay")
    if lost == "the answers":
        way.mute()
    else:
        way.hold()
    ordered += working.order(50)
    working.wait_for(lambda: "redis.away" in relay.log.read_text(), "the relay's complaint")
    working.wait_for(
        lambda: "redis.lost" in worker.log.read_text() or "server.away" in worker.log.read_text(),
        "the worker's complaint",
    )
    ordered += working.order(50)
    if lost == "what was on its way":
        way.cut()
    way.release()
    working.check_effects(ordered)
    assert working.one("SELECT leader FROM outbox.relay") == leader
    assert "stream.lost" not in relay.log.read_text()
    for name in ("ordered", "booked"):
        key = stream_key("outbox", name)
        working.wait_for(
            lambda key=key: all(group["pending"] == 0 for group in at_redis.xinfo_groups(key)),
            "all being acknowledged",
        )


@pytest.mark.slow
def test_a_storm_that_kills_every_client_again_and_again_costs_no_effect(working: Any, at_redis: redis.Redis) -> None:
    _, worker = begin(working)
    over = threading.Event()
    killed = [0]

    def storm() -> None:
        while not over.wait(0.02):
            with contextlib.suppress(redis.RedisError):
                killed[0] += at_redis.client_kill_filter(_type="normal", skipme=True)

    thread = threading.Thread(target=storm, daemon=True)
    thread.start()
    ordered: list[str] = []
    try:
        while killed[0] < KILLS:
            seen = killed[0]
            ordered += working.order(10)
            working.wait_for(lambda seen=seen: killed[0] >= seen + 5, "further clients to kill")
    finally:
        over.set()
        thread.join(10)
    working.check_effects(ordered)
    assert worker.running
