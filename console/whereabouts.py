"""Where an event's entry is in Redis, for `outbox status ID`: in which streams, and in whose hands."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import redis

from outbox.admin.story import Story
from outbox.names import catch_up_key, stream_key


@dataclass(frozen=True)
class Place:
    """A handler's view of the entry in one stream. `held_by` is the worker that has it, `held_for` how long ago that
    worker got or renewed it; both are None when nobody has."""

    handler: str
    stream: str
    held_by: str | None = None
    held_for: timedelta | None = None


def places(client: redis.Redis, prefix: str, story: Story) -> list[Place]:
    """Every stream that has the entry, for each handler without an outcome. Raises `redis.RedisError`.

    The entry's id is the event's position, so this is two commands for each stream, however long it is.
    """
    if story.position is None or story.name is None:
        return []
    id = str(story.position)
    found: list[Place] = []
    for handler in story.handlers:
        if handler.state != "waiting":
            continue
        for key in (stream_key(prefix, story.name), catch_up_key(prefix, story.name, handler.handler)):
            if not client.xrange(key, id, id):
                continue
            found.append(_place(client, key, handler.handler, id))
    return found


def _place(client: redis.Redis, key: str, handler: str, id: str) -> Place:
    try:
        pending: Any = client.xpending_range(key, handler, id, id, 1)
    except redis.ResponseError as error:
        if "NOGROUP" not in str(error):
            raise
        pending = []
    if not pending:
        return Place(handler, key)
    (held,) = pending
    return Place(handler, key, held["consumer"].decode(), timedelta(milliseconds=held["time_since_delivered"]))
