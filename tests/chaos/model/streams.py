"""Redis as the protocol uses it: streams with ids, groups and pending lists. One call is one moment.

What `relay/lua` and `workers/lua` do is done here in Python; `test_streams.py` holds both against a real server.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import redis

from outbox.position import ORIGIN, Position

Fields = list[bytes]
NO_GROUP = "NOGROUP No such key or consumer group"


@dataclass(slots=True)
class Pending:
    """One entry in a group's pending list."""

    consumer: str
    since: float


@dataclass(slots=True)
class Group:
    """A consumer group."""

    delivered: Position
    pending: dict[Position, Pending] = field(default_factory=dict)
    consumers: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Stream:
    """A stream."""

    entries: dict[Position, Fields] = field(default_factory=dict)
    last: Position = ORIGIN
    groups: dict[str, Group] = field(default_factory=dict)


class Redis:
    """One server. `now()` is its clock, in seconds; `forgets` says what XCLAIM does with an entry that was trimmed:
    Redis 7 forgets that it is pending, 6.2 keeps it."""

    def __init__(self, now: Callable[[], float], *, forgets: bool = True) -> None:
        self._now = now
        self._forgets = forgets
        self.streams: dict[str, Stream] = {}
        self.words: dict[str, bytes] = {}
        self.on_append: Callable[[str, Position, Fields], None] = lambda *_: None
        self.on_acknowledge: Callable[[str, str, Position, Fields | None], None] = lambda *_: None

    # What happens to a server

    def copy(self) -> dict[str, Stream]:
        """What a replica has that is about to lag, or a file."""
        return copy.deepcopy(self.streams)

    def become(self, streams: dict[str, Stream]) -> None:
        """Another server with this data takes over."""
        self.streams = copy.deepcopy(streams)
        self.words.clear()

    # Plain keys

    def set(self, key: str, value: bytes, *, new: bool = False) -> bool:
        if new and key in self.words:
            return False
        self.words[key] = value
        return True

    def get(self, key: str) -> bytes | None:
        return self.words.get(key)

    def delete(self, key: str) -> int:
        return int(self.streams.pop(key, None) is not None)

    # Streams

    def append(self, key: str, expected: bytes, entries: list[tuple[bytes, Fields]]) -> bytes:
        """append.lua"""
        stream = self.streams.get(key)
        last = ORIGIN if stream is None else stream.last
        if str(last).encode() != expected:
            return str(last).encode()
        for entry_id, fields in entries:
            self.add(key, Position.parse(entry_id), fields)
        return str(self.streams[key].last if key in self.streams else ORIGIN).encode()

    def add(self, key: str, at: Position, fields: Fields) -> None:
        stream = self.streams.setdefault(key, Stream())
        if at <= stream.last:
            raise redis.ResponseError(
                "ERR The ID specified in XADD is equal or smaller than the target stream top item"
            )
        stream.entries[at] = fields
        stream.last = at
        self.on_append(key, at, fields)

    def trim(self, key: str, minid: Position) -> int:
        stream = self.streams.get(key)
        if stream is None:
            return 0
        gone = [at for at in stream.entries if at < minid]
        for at in gone:
            del stream.entries[at]
        return len(gone)

    def create_group(self, key: str, name: str, start: str) -> None:
        stream = self.streams.setdefault(key, Stream())
        if name in stream.groups:
            raise redis.ResponseError("BUSYGROUP Consumer Group name already exists")
        stream.groups[name] = Group(stream.last if start == "$" else Position.parse(start))

    def set_group(self, key: str, name: str, at: str) -> None:
        self._exists(key)
        self._group(key, name).delivered = Position.parse(at)

    def read_group(self, key: str, name: str, consumer: str, count: int) -> list[tuple[bytes, Fields]]:
        """XREADGROUP … >"""
        group = self._group(key, name)
        group.consumers[consumer] = self._now()
        found = [(at, fields) for at, fields in self.streams[key].entries.items() if at > group.delivered][:count]
        for at, _ in found:
            group.delivered = at
            group.pending[at] = Pending(consumer, self._now())
        return [(str(at).encode(), fields) for at, fields in found]

    def acknowledge(self, key: str, name: str, *ids: bytes) -> int:
        stream = self.streams.get(key)
        group = None if stream is None else stream.groups.get(name)
        count = 0
        for at in map(Position.parse, ids) if stream is not None and group is not None else ():
            if group.pending.pop(at, None) is not None:  # type: ignore[union-attr]
                self.on_acknowledge(key, name, at, stream.entries.get(at))  # type: ignore[union-attr]
                count += 1
        return count

    def pending(self, key: str, name: str, idle: float, count: int) -> list[list[Any]]:
        """XPENDING … IDLE … - + count, `idle` in seconds."""
        group, now = self._group(key, name), self._now()
        found = [
            [str(at).encode(), held.consumer.encode(), int((now - held.since) * 1000), 1]
            for at, held in sorted(group.pending.items())
            if now - held.since >= idle
        ]
        return found[:count]

    def claim(
        self, key: str, name: str, consumer: str, idle: float, ids: list[bytes], *, set_idle: float = 0.0
    ) -> list[bytes]:
        """XCLAIM … JUSTID; times in seconds."""
        group, now = self._group(key, name), self._now()
        claimed = []
        for text in ids:
            at = Position.parse(text)
            held = group.pending.get(at)
            if held is None:
                continue
            if self._forgets and at not in self.streams[key].entries:
                del group.pending[at]
            elif now - held.since >= idle:
                group.pending[at] = Pending(consumer, now - set_idle)
                claimed.append(text)
        return claimed

    def entry(self, key: str, text: bytes) -> list[list[Any]]:
        """XRANGE key id id"""
        stream, at = self.streams.get(key), Position.parse(text)
        return [[text, stream.entries[at]]] if stream is not None and at in stream.entries else []

    def groups(self, key: str) -> list[list[bytes]]:
        """XINFO GROUPS, as far as it is looked at."""
        self._exists(key)
        return [
            [b"name", name.encode(), b"last-delivered-id", str(group.delivered).encode()]
            for name, group in self.streams[key].groups.items()
        ]

    def consumers(self, key: str, name: str) -> list[list[Any]]:
        """XINFO CONSUMERS"""
        self._exists(key)
        group = self._group(key, name)
        return [
            [b"name", each.encode(), b"pending", sum(p.consumer == each for p in group.pending.values()),
             b"idle", int((self._now() - seen) * 1000)]
            for each, seen in group.consumers.items()
        ]  # fmt: skip

    def delete_consumer(self, key: str, name: str, consumer: str) -> None:
        """XGROUP DELCONSUMER: with what it has pending."""
        self._exists(key)
        group = self._group(key, name)
        group.consumers.pop(consumer, None)
        for at in [at for at, held in group.pending.items() if held.consumer == consumer]:
            del group.pending[at]

    # Scripts

    def progress(self, key: str, name: str) -> list[Any]:
        """progress.lua"""
        stream = self.streams.get(key)
        if stream is None:
            return [b"0-0", 0, b"", b"", b""]
        group = stream.groups.get(name)
        delivered = b"" if group is None else str(group.delivered).encode()
        pending = b"" if group is None or not group.pending else str(min(group.pending)).encode()
        present = str(max(stream.entries)).encode() if stream.entries else b""
        return [str(stream.last).encode(), len(stream.entries), delivered, pending, present]

    def detach(self, key: str, name: str, cut: bytes, away: bytes) -> bytes:
        """detach.lua"""
        self._exists(key)
        group = self.streams[key].groups.get(name)
        if group is None:
            self.streams[key].groups[name] = Group(Position.parse(away))
            return away
        delivered = str(group.delivered).encode()
        if delivered == away:
            return delivered
        if group.delivered < Position.parse(cut):
            group.delivered = Position.parse(away)
            return delivered
        return b""

    def renew(self, key: str, name: str, consumer: str, idle: float, *ids: bytes) -> list[list[bytes]]:
        """renew.lua"""
        stream = self.streams.get(key)
        if ids:
            self._group(key, name)
        first = min(stream.entries, default=None) if stream is not None else None
        lost, trimmed, gone, mine = [], [], [], []
        for text in ids:
            held = self._group(key, name).pending.get(Position.parse(text))
            if held is None:
                gone.append(text)
            elif held.consumer != consumer:
                lost.append(text)
            elif first is None or Position.parse(text) < first:
                trimmed.append(text)
            else:
                mine.append(text)
        self.claim(key, name, consumer, 0, mine, set_idle=idle)
        return [lost, trimmed, gone]

    def leave(self, key: str, name: str, consumer: str) -> int:
        """leave.lua"""
        if any(held.consumer == consumer for held in self._group(key, name).pending.values()):
            return 0
        self.delete_consumer(key, name, consumer)
        return 1

    def _exists(self, key: str) -> None:
        if key not in self.streams:
            raise redis.ResponseError("ERR no such key")

    def _group(self, key: str, name: str) -> Group:
        if key not in self.streams or name not in self.streams[key].groups:
            raise redis.ResponseError(NO_GROUP)
        return self.streams[key].groups[name]
