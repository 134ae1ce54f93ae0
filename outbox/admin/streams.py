"""How full the Redis streams are. Read-only, and content with a Redis that is away."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis

from outbox.address import parse
from outbox.names import catch_up_key, stream_key
from outbox.position import Position
from outbox.redis import connect

if TYPE_CHECKING:
    from outbox.admin import HandlerStatus
    from outbox.settings import Settings

TIMEOUT = 3.0
"""Seconds until a Redis that does not answer counts as away."""


@dataclass(frozen=True)
class Stream:
    """A stream and one of the groups that read it.

    `pending` counts entries read and not acknowledged yet, `lag` those not read yet. `pending` is None when there is no
    such group, `lag` when Redis does not know it or is older than 7.
    """

    key: str
    length: int
    handler: str
    pending: int | None
    consumers: int | None
    last_delivered: Position | None
    lag: int | None = None


def opened(settings: Settings) -> redis.Redis:
    """A client that gives up after three seconds. Raises `redis.RedisError` when Redis cannot be reached."""
    try:
        client = connect(settings.redis_url.get_secret_value(), timeout=TIMEOUT, connect_timeout=TIMEOUT)
    except ValueError:
        raise redis.ConnectionError("OUTBOX_REDIS_URL is not a URL like redis://host:6379/0") from None
    try:
        client.ping()
    except (redis.ConnectionError, redis.TimeoutError) as error:
        client.close()
        # Some of its messages do not say where.
        place = parse(settings.redis_url.get_secret_value())
        raise redis.ConnectionError(f"{place} does not answer: {error}") from None
    return client


def streams(client: redis.Redis, prefix: str, handlers: Iterable[HandlerStatus]) -> list[Stream]:
    """Every stream the handlers read that exists. Raises `redis.RedisError` when Redis cannot be asked."""
    found: list[Stream] = []
    known: dict[str, tuple[int, list[Any]] | None] = {}
    for handler in handlers:
        for key in (
            stream_key(prefix, handler.event_name),
            catch_up_key(prefix, handler.event_name, handler.name),
        ):
            if key not in known:
                known[key] = _read(client, key)
            if (facts := known[key]) is not None:
                found.append(_stream(key, handler.name, *facts))
    return found


def _read(client: redis.Redis, key: str) -> tuple[int, list[Any]] | None:
    """A stream's length and its groups."""
    try:
        groups: Any = client.xinfo_groups(key)
        length: Any = client.xlen(key)
    except redis.ResponseError as error:
        if "no such key" in str(error):
            return None
        raise
    return length, groups


def _stream(key: str, handler: str, length: int, groups: list[Any]) -> Stream:
    group = next((group for group in groups if group["name"] == handler.encode()), None)
    if group is None:
        return Stream(key, length, handler, None, None, None)
    last = Position.parse(group["last-delivered-id"])
    return Stream(key, length, handler, group["pending"], group["consumers"], last, group.get("lag"))
