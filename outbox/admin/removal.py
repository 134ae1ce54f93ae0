"""Taking things out of Redis by hand: what is kept for a handler, and entries. Not loaded by `import outbox`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import redis

from outbox.names import catch_up_key, stream_key

PAGE = 500
"""Entries that are read at a time."""


def remove_handler(client: redis.Redis, prefix: str, event_name: str, handler: str, *, keep_main: bool) -> None:
    """Remove a handler's group and its catch-up stream; the entries of the main stream, too, unless others read it.

    The stream itself stays: its last id says how far it was written.
    """
    main = stream_key(prefix, event_name)
    if client.exists(main):
        client.xgroup_destroy(main, handler)
    client.delete(catch_up_key(prefix, event_name, handler))
    if not keep_main:
        client.xtrim(main, maxlen=0, approximate=False)


def stream_keys(prefix: str, names: Iterable[str], handlers: Iterable[tuple[str, str]]) -> list[str]:
    """The main streams of these event names, and the catch-up streams of these (event name, handler)."""
    return [stream_key(prefix, name) for name in sorted(names)] + [
        catch_up_key(prefix, name, handler) for name, handler in handlers
    ]


def remove_entries(client: redis.Redis, keys: Iterable[str], ids: set[bytes]) -> int:
    """Remove the entries of these events (ids as text) from streams, and return how many. Reads all of each stream."""
    removed = 0
    for key in keys:
        start: Any = "-"
        while True:
            page = cast("list[Any]", client.xrange(key, min=start, count=PAGE))
            found = [number for number, fields in page if fields and fields.get(b"id") in ids]
            if found:
                removed += int(client.xdel(key, *found))
            if len(page) < PAGE:
                break
            start = b"(" + page[-1][0]
    return removed
