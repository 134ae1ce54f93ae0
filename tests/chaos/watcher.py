"""A bystander at the streams: writes down which event stood where, while it stood there."""

from __future__ import annotations

import threading
from typing import Any

import redis

from outbox.names import catch_up_key, stream_key
from tests.chaos import tasks
from tests.chaos.cluster import Cluster
from tests.chaos.facts import Sighting

HANDLERS = tasks.app(tasks.LATEST, children=True).handlers.values()
KEYS = {stream_key("outbox", each.event_name) for each in HANDLERS} | {
    catch_up_key("outbox", each.event_name, each.name) for each in HANDLERS
}
"""Main streams, and each handler's catch-up stream."""


class Watcher:
    """A thread that reads every entry of every stream of whoever is the primary."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._over = threading.Event()
        self._seen: set[Sighting] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> tuple[Sighting, ...]:
        """Look no more; what was seen."""
        self._over.set()
        self._thread.join()
        return tuple(self._seen)

    def _run(self) -> None:
        while not self._over.is_set():
            # From the beginning after each failure: a Redis that lost data may be fed again what it had.
            last = dict.fromkeys(KEYS, "0-0")
            try:
                with self._cluster.redis() as client:
                    while not self._over.is_set():
                        self._note(client.xread(last, count=500, block=200), last)
            except redis.RedisError:
                # It is away, or another one is the primary by now.
                self._over.wait(0.1)

    def _note(self, found: Any, last: dict[str, str]) -> None:
        for key, entries in found or ():
            stream = name_of(key.decode())
            for entry_id, fields in entries:
                last[key.decode()] = entry_id.decode()
                # Trimmed, deleted or by somebody else.
                if b"id" in fields:
                    tick, _, seq = entry_id.partition(b"-")
                    self._seen.add(Sighting(stream, int(tick), int(seq), fields[b"id"].decode()))


def name_of(key: str) -> str:
    """How a stream is called in facts: by its event, and for a catch-up stream by its handler, too.

    >>> name_of("outbox:{order}:book")
    'order:book'
    """
    return key.partition(":")[2].replace("{", "").replace("}", "")
