"""A bystander at the main streams: writes down which event stood where, while it stood there."""

from __future__ import annotations

import threading
from typing import Any

import redis

from outbox.names import stream_key
from tests.chaos.cluster import Cluster
from tests.chaos.facts import Sighting
from tests.chaos.faults import NAMES


class Watcher:
    """A thread that reads every entry of every main stream of whoever is the primary."""

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
        last = {stream_key("outbox", name): "0-0" for name in NAMES}
        while not self._over.is_set():
            try:
                with self._cluster.redis() as client:
                    while not self._over.is_set():
                        self._note(client.xread(last, count=500, block=200), last)
            except redis.RedisError:
                # It is away, or another one is the primary by now.
                self._over.wait(0.1)

    def _note(self, found: Any, last: dict[str, str]) -> None:
        for key, entries in found or ():
            name = key.decode().partition("{")[2].rstrip("}")
            for entry_id, fields in entries:
                last[key.decode()] = entry_id.decode()
                # Trimmed, deleted or by somebody else.
                if b"id" in fields:
                    tick, _, seq = entry_id.partition(b"-")
                    self._seen.add(Sighting(name, int(tick), int(seq), fields[b"id"].decode()))
