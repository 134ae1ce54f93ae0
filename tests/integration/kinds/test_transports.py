"""One server, reached through TLS, a unix socket, or as a user with few rights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from console.servers import Redis
from outbox.redis import connect


@pytest.fixture
def encrypted(redis_server: Redis, encrypt: Callable[[int], Any]) -> str:
    """The address of a Redis that only takes clients with a certificate."""
    return f"rediss://127.0.0.1:{encrypt(redis_server.port).port}/0"


def test_tls_with_an_own_authority_and_a_client_certificate(
    encrypted: str, trust: str, whole_path: Callable[[str], Any]
) -> None:
    with whole_path(f"{encrypted}?{trust}") as path:
        path.add(20)
        path.await_done()


def test_a_server_whose_certificate_nobody_vouches_for_is_not_talked_to(encrypted: str) -> None:
    with connect(encrypted, timeout=3) as client, pytest.raises(redis.ConnectionError, match="certificate"):
        client.ping()


def test_a_unix_socket(start_redis: Callable[..., Redis], scratch: Path, whole_path: Callable[[str], Any]) -> None:
    place = scratch / "redis.sock"
    start_redis(options={"unixsocket": str(place)})
    with whole_path(f"unix://{place}?db=1") as path:
        path.add(20)
        path.await_done()


def test_the_documented_rights_are_enough_for_relay_and_worker(
    redis_server: Redis,
    documented_rights: list[list[str]],
    assert_nothing_refused: Callable[[redis.Redis], None],
    whole_path: Callable[[str], Any],
) -> None:
    with redis.Redis.from_url(redis_server.url) as admin:
        admin.execute_command(*documented_rights[0])
        url = redis_server.url.replace("://", "://outbox:password@")
        with whole_path(url) as path:
            path.add(20)
            path.await_done()
            path.await_attached()
            path.add(20)
            path.await_done()
            # Groups that are lost are made anew under the same rights.
            admin.flushall()
            path.add(20)
            path.await_done()
        with whole_path(url) as again:
            again.added = path.added
            again.add(20)
            again.await_done()
        assert_nothing_refused(admin)


def test_the_documented_rights_reach_no_other_keys(redis_server: Redis, documented_rights: list[list[str]]) -> None:
    with redis.Redis.from_url(redis_server.url) as admin:
        admin.execute_command(*documented_rights[0])
    with (
        redis.Redis.from_url(redis_server.url, username="outbox", password="password") as client,
        pytest.raises(redis.ResponseError, match=r"(?i)permission"),
    ):
        client.set("others:key", "1")
