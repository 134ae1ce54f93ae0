"""Redis behind Sentinels: the whole path over a failover to a replica that lacks the last entries."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from console.servers import Redis
from outbox.redis import connect


class Sentinel(Redis):
    """A Sentinel that watches one primary and believes itself. `watched` is the primary's port for all clients."""

    def __init__(self, folder: Path, *, program: Path, watched: int) -> None:
        super().__init__(folder, program=program)
        self.name = "sentinel"
        self.watched = watched

    def prepare(self) -> None:
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.folder}",
            f"sentinel monitor orders 127.0.0.1 {self.watched} 1",
            "sentinel down-after-milliseconds orders 1000",
            "sentinel failover-timeout orders 3000",
        ]
        (self.folder / "sentinel.conf").write_text("\n".join(lines) + "\n")

    def command(self) -> list[str]:
        return [str(self.program), str(self.folder / "sentinel.conf"), "--sentinel"]


@pytest.fixture
def pair(start_redis: Callable[..., Redis], wait_for: Callable[..., Any]) -> list[Redis]:
    """A primary and its replica."""
    primary = start_redis()
    replica = start_redis()
    with redis.Redis.from_url(replica.url) as client:
        client.execute_command("REPLICAOF", "127.0.0.1", primary.port)
        wait_for(lambda: client.info()["master_link_status"] == "up", "the replica")
    return [primary, replica]


@pytest.fixture
def sentinel(pair: list[Redis], scratch: Path, wait_for: Callable[..., Any]) -> Iterator[Sentinel]:
    """A Sentinel that knows both."""
    made = Sentinel(scratch / f"sentinel-{uuid.uuid4().hex[:8]}", program=pair[0].program, watched=pair[0].port)
    with made, redis.Redis.from_url(made.url.removesuffix("/0")) as client:
        wait_for(lambda: client.execute_command("SENTINEL", "REPLICAS", "orders"), "the Sentinel knowing the replica")
        yield made


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_when_a_replica_without_the_last_entries_takes_over(
    pair: list[Redis], sentinel: Sentinel, whole_path: Callable[[str], Any], wait_for: Callable[..., Any]
) -> None:
    primary, replica = pair
    # The first of the Sentinels does not answer.
    url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/orders/0"
    with whole_path(url) as path, redis.Redis.from_url(primary.url) as old, redis.Redis.from_url(replica.url) as new:
        path.await_attached()
        path.add(30)
        path.await_done()
        # From here on the replica gets nothing.
        old.execute_command("ACL", "SETUSER", "default", "-psync", "-sync")
        old.execute_command("CLIENT", "KILL", "TYPE", "replica")
        path.add(30)
        path.await_done()
        path.add(30)
        primary.kill()
        wait_for(lambda: new.info()["role"] == "master", "the replica taking over")
        path.add(30)
        path.await_done()
        path.await_attached()


def test_tls_for_the_sentinels_and_for_the_primary(
    redis_server: Redis,
    scratch: Path,
    encrypt: Callable[[int], Any],
    trust: str,
    whole_path: Callable[[str], Any],
) -> None:
    primary = encrypt(redis_server.port)
    folder = scratch / f"sentinel-{uuid.uuid4().hex[:8]}"
    with Sentinel(folder, program=redis_server.program, watched=primary.port) as sentinel:
        guard = encrypt(sentinel.port)
        with whole_path(f"rediss+sentinel://127.0.0.1:{guard.port}/orders/0?{trust}") as path:
            path.add(20)
            path.await_done()
            path.await_attached()
        assert guard.encrypted
        assert primary.encrypted


def test_a_sentinel_whose_certificate_nobody_vouches_for_is_not_asked(
    redis_server: Redis, scratch: Path, encrypt: Callable[[int], Any]
) -> None:
    folder = scratch / f"sentinel-{uuid.uuid4().hex[:8]}"
    with Sentinel(folder, program=redis_server.program, watched=redis_server.port) as sentinel:
        guard = encrypt(sentinel.port)
        with (
            connect(f"rediss+sentinel://127.0.0.1:{guard.port}/orders/0", timeout=3) as client,
            pytest.raises(redis.ConnectionError),
        ):
            client.ping()
        assert not guard.encrypted
