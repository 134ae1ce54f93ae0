"""A bystander at the streams: notes every event that the relay publishes, and sees who holds what."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Self
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from outbox import entry
from outbox.names import catch_up_key, stream_key
from outbox.settings import Settings

PAGE = 1000
"""Entries read at a time."""


class Bystander:
    """Reads all streams of the given handlers (by event name) without a group, from the beginning, until it is closed.

    >>> async with Bystander(settings, {"signed_up": ["send_welcome"]}) as bystander:
    ...     ...
    >>> len(bystander.published)
    420
    """

    def __init__(self, settings: Settings, handlers: Mapping[str, Iterable[str]]) -> None:
        self.published: set[UUID] = set()
        prefix = settings.prefix
        names = [stream_key(prefix, name) for name in handlers]
        names += [catch_up_key(prefix, name, handler) for name, its in handlers.items() for handler in its]
        self._last: dict[Any, Any] = {name.encode(): b"0" for name in names}
        self._redis = Redis.from_url(settings.redis_url.get_secret_value())
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._redis.aclose()

    async def catch_up(self) -> None:
        """Read what is there now."""
        while await self._read(block=None):
            pass

    async def unfinished(self) -> Counter[str]:
        """How many entries each worker holds without having acknowledged them, by the worker's name."""
        held: Counter[str] = Counter()
        for stream in self._last:
            try:
                groups = await self._redis.xinfo_groups(stream)
            except ResponseError:
                continue
            for group in groups:
                for consumer in await self._redis.xinfo_consumers(stream, group["name"]):
                    held[consumer["name"].decode()] += consumer["pending"]
        return held

    async def _watch(self) -> None:
        while True:
            await self._read(block=1000)

    async def _read(self, block: int | None) -> bool:
        found: Any = await self._redis.xread(self._last, count=PAGE, block=block)
        for stream, entries in found or []:
            for position, fields in entries:
                self.published.add(entry.decode(fields).id)
                self._last[stream] = position
        return bool(found)
