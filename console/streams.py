"""How full the Redis streams are. Read-only, and content with a Redis that is away."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis

from outbox.names import catch_up_key, stream_key
from outbox.redis import connect

if TYPE_CHECKING:
    from outbox.admin import HandlerStatus
    from outbox.settings import Settings

TIMEOUT = 3.0
"""Seconds until a Redis that does not answer counts as away."""


@dataclass(frozen=True)
class Stream:
    """A stream and one of the groups that read it. `pending` counts entries read and not acknowledged yet;
    it is None when there is no such group."""

    key: str
    length: int
    handler: str
    pending: int | None
    consumers: int | None
    last_delivered: str | None


def streams(settings: Settings, handlers: Iterable[HandlerStatus]) -> list[Stream]:
    """Every stream the handlers read that exists. Raises `redis.RedisError` when Redis cannot be asked."""
    try:
        client = connect(settings.redis_url.get_secret_value(), timeout=TIMEOUT, connect_timeout=TIMEOUT)
    except ValueError:
        raise redis.ConnectionError("OUTBOX_REDIS_URL is not a URL like redis://host:6379/0") from None
    found: list[Stream] = []
    with client:
        client.ping()
        for handler in handlers:
            for key in (
                stream_key(settings.prefix, handler.event_name),
                catch_up_key(settings.prefix, handler.event_name, handler.name),
            ):
                stream = _stream(client, key, handler.name)
                if stream is not None:
                    found.append(stream)
    return found


def _stream(client: redis.Redis, key: str, handler: str) -> Stream | None:
    try:
        groups: Any = client.xinfo_groups(key)
        length: Any = client.xlen(key)
    except redis.ResponseError as error:
        if "no such key" in str(error):
            return None
        raise
    group = next((group for group in groups if group["name"] == handler.encode()), None)
    if group is None:
        return Stream(key, length, handler, None, None, None)
    return Stream(key, length, handler, group["pending"], group["consumers"], group["last-delivered-id"].decode())
