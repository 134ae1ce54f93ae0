"""Connections to Redis, and which of its errors heal by waiting."""

from __future__ import annotations

from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from workers.queries import lua

Redis = redis.asyncio.Redis

Unreachable = (RedisError, OSError, TimeoutError)

RAW = ("XREAD", "XREADGROUP", "XPENDING", "XCLAIM", "XRANGE", "XINFO GROUPS", "XINFO CONSUMERS")


def connect(url: str, *, timeout: float = 5.0) -> Redis:
    """A client whose commands fail after `timeout` seconds without a reply and are not repeated by it: a read that is
    repeated would leave the entries of the first one unread. Stream replies come as the server sends them."""
    client: Redis = redis.asyncio.Redis.from_url(
        url,
        protocol=2,
        socket_timeout=timeout,
        socket_connect_timeout=5.0,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
    )
    for name in RAW:
        client.set_response_callback(name, _raw)
    return client


def _raw(response: Any, **_: Any) -> Any:
    return response


async def command(client: Redis, *words: str | bytes | int) -> Any:
    """The reply to a command in its own words."""
    return await client.execute_command(*words)  # type: ignore[no-untyped-call]


class Script:
    """A Lua script, loaded again whenever the server forgot it."""

    def __init__(self, client: Redis, name: str) -> None:
        self._script = client.register_script(lua(name))

    async def __call__(self, key: str, *arguments: str | bytes | int) -> Any:
        return await self._script(keys=[key], args=list(arguments))
