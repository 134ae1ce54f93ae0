"""The main feed: takes every tick to the streams of all names that have an attached handler; never waits for one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psycopg
import redis
import structlog

from outbox import spans
from outbox.failpoints import reach
from outbox.names import catch_up_key, stream_key
from outbox.position import END, ORIGIN, Position
from relay import bounds, progress, scripts, tick
from relay.append import Append, Appender, Lost
from relay.bounds import Contents
from relay.handlers import Handler, Handlers
from relay.measures import Measures
from relay.patience import Patience
from relay.tick import Tick
from relay.tracing import sending
from relay.wire import Entries

log = structlog.get_logger()

IN_FLIGHT = 1 << 20
"""Bytes on their way to Redis beyond which the oldest chunk is waited for; not while there is but one: that is appended
while the next is read and sent."""

BOOKMARK_EVERY = 0.5
"""Seconds between bookmarks within a large tick."""


@dataclass(frozen=True)
class Published:
    """How far the main feed is and where its streams end: a value for other threads, replaced as a whole."""

    position: Position = ORIGIN
    streams: dict[str, Position] = field(default_factory=dict)


class MainFeed:
    """Publishes ticks in order and keeps the bookmark. `go_on()` is asked before each chunk and raises to stop."""

    def __init__(
        self,
        connection: psycopg.Connection,
        client: redis.Redis,
        *,
        schema: str,
        prefix: str,
        leader: str,
        handlers: Handlers,
        appender: Appender,
        patience: Patience,
        go_on: Callable[[], None],
        measures: Measures,
    ) -> None:
        self._connection = connection
        self._cursor = connection.cursor()
        self._client = client
        self._schema = schema
        self._prefix = prefix
        self._leader = leader
        self._handlers = handlers
        self._appender = appender
        self._patience = patience
        self._go_on = go_on
        self._measures = measures
        self._tracer = spans.tracer()
        self._floor = 0
        self._touched: set[str] = set()
        self._streams: dict[str, Position] = {}
        self._contents: dict[str, Contents] = {}
        self.trimmed: dict[str, Position] = {}
        """Up to where the sweep has trimmed each stream; written by its thread."""
        self.position = ORIGIN
        self.tick: Tick
        self.published = Published()

    def resume(self) -> None:
        """Find out where the last leader and Redis stand, then publish what was ticked but not published."""
        row = self._connection.execute(f"SELECT tick, seq FROM {self._schema}.relay".encode()).fetchone()
        assert row is not None
        self.position = Position(*row)
        self._handlers.refresh(self.position)
        rows = self._connection.execute(f"SELECT name, tick, seq FROM {self._schema}.stream".encode()).fetchall()
        for name, number, seq in rows:
            expected = Position(number, seq)
            actual = self._look(name)
            self._floor = max(self._floor, actual.tick + 1)
            if actual < expected:
                self.lose(name, expected, actual)
            else:
                self._streams[name] = expected
        for each in self._ticks_from(self.position.tick):
            after = self.position.seq if each.id == self.position.tick else -1
            self._publish(each, self._chunks(each, after), after)

    def advance(self) -> int:
        """Take the next tick, if there is one, and publish it. Returns how many events it had."""
        names = sorted(self._handlers.attached_names)
        taken = tick.take(self._cursor, self._schema, self.tick, self._floor, names)
        if taken is None:
            return 0
        reach("relay.ticked")
        if taken.rows is not None:
            return self._publish(taken.tick, tick.chunks(taken.rows, taken.tick.id))
        return self._publish(taken.tick, self._chunks(taken.tick, -1))

    def attach_point(self, event_name: str) -> None:
        """Look where a main stream ends before its first handler is attached."""
        if event_name not in self._handlers.attached_names:
            self._streams[event_name] = actual = self._look(event_name)
            self._touched.add(event_name)
            self._floor = max(self._floor, actual.tick + 1)
            self._tell()

    def lose(self, event_name: str, expected: Position, actual: Position) -> None:
        """Redis lost the end of a stream: never append over the hole, feed its handlers from PostgreSQL instead."""
        log.warning("stream.lost", event_name=event_name, expected=str(expected), actual=str(actual))
        for handler in self._handlers.of(event_name):
            if handler.attached:
                # What it holds is fed again; left in place, the new feed would seem to be further than it is.
                self._forget(catch_up_key(self._prefix, event_name, handler.name))
                log.info("handler.detached", handler=handler.name, event_name=event_name, why="stream lost")
        reach("relay.forgotten")
        self._handlers.detach(event_name, actual)
        reach("relay.detached")
        self._contents.pop(event_name, None)
        self._appender.expect(stream_key(self._prefix, event_name), actual)
        self._streams[event_name] = actual
        self._tell()

    def _forget(self, key: str) -> None:
        self._patience.insist(lambda: self._client.delete(key))

    def _look(self, event_name: str) -> Position:
        """See what a stream holds and where it ends."""
        key = stream_key(self._prefix, event_name)
        state = self._patience.insist(lambda: progress.read(self._client, key, ""))
        self._appender.expect(key, state.last)
        self._contents[event_name] = held = Contents(bounds.MAIN)
        if state.length:
            size = self._patience.insist(lambda: self._client.memory_usage(key))
            held.add(state.last, entries=state.length, size=int(size or 0))
        return state.last

    def _ticks_from(self, start: int) -> Iterator[Tick]:
        while ticks := tick.load(self._connection, self._schema, start):
            yield from ticks
            start = ticks[-1].id + 1

    def _chunks(self, each: Tick, after: int) -> Iterator[tick.Chunk]:
        names = sorted(self._handlers.attached_names)
        return tick.read(self._connection, self._schema, each, names, after) if names else iter(())

    def _publish(self, each: Tick, chunks: Iterator[tick.Chunk], after: int = -1) -> int:
        with sending(self._tracer, chunks) as traced:
            return self._send(each, traced, after)

    def _send(self, each: Tick, chunks: Iterator[tick.Chunk], after: int) -> int:
        self.tick = each
        self.position = Position(each.id, max(after, 0))
        count = noted = 0
        began = marked = time.monotonic()
        sent: deque[tick.Chunk] = deque()
        in_flight = 0
        for chunk in chunks:
            self._go_on()
            reach("relay.read")
            self._appender.submit(self._appends(chunk))
            reach("relay.sent")
            sent.append(chunk)
            in_flight += chunk.size
            while in_flight > IN_FLIGHT and len(sent) > 1:
                in_flight -= sent[0].size
                count += self._settle(sent.popleft())
            if time.monotonic() - marked > BOOKMARK_EVERY:
                self._bookmark(count - noted)
                marked, noted = time.monotonic(), count
        while sent:
            count += self._settle(sent.popleft())
        # The whole tick, also for names that are attached from here on.
        self.position = Position(each.id, END)
        self._bookmark(count - noted)
        if count:
            self._measures.batch(count, time.monotonic() - began)
            log.debug("relay.published", tick=each.id, events=count)
        return count

    def _appends(self, chunk: tick.Chunk) -> list[Append]:
        return [
            Append(stream_key(self._prefix, event_name), name, entries)
            for name, entries in chunk.parts.items()
            if (event_name := name.decode()) in self._handlers.attached_names
        ]

    def _settle(self, chunk: tick.Chunk) -> int:
        losses = self._appender.settle()
        reach("relay.appended")
        self.position = chunk.last
        for loss in losses:
            self._lost(loss)
        for name, entries in chunk.parts.items():
            self._appended(name.decode(), entries)
        return chunk.rows

    def _appended(self, event_name: str, entries: Entries) -> None:
        self._touched.add(event_name)
        if event_name not in self._handlers.attached_names:
            return
        self._measures.published[event_name] += len(entries)
        held = self._contents.setdefault(event_name, Contents(bounds.MAIN))
        held.add(Position.parse(entries.final), entries=len(entries), size=entries.size)
        if held.full:
            held.trimmed(self.trimmed.get(event_name, ORIGIN))
        if held.full:
            self._make_room(event_name, held)

    def _make_room(self, event_name: str, held: Contents) -> None:
        """Trim a full stream to half of what it may hold. Who is behind that is fed from PostgreSQL from then on."""
        key, cut = stream_key(self._prefix, event_name), held.cut()
        for handler in self._handlers.of(event_name):
            if handler.attached and (fed := self._take_off(key, handler, cut)) is not None:
                reach("relay.taken_off")
                self._handlers.detach_behind(handler, fed)
                log.warning("handler.detached", handler=handler.name, event_name=event_name, why="behind", fed=str(fed))
        if event_name not in self._handlers.attached_names:
            # Nobody reads it any more.
            cut = Position.parse(self._appender.last[key])
        self._patience.insist(lambda: self._client.xtrim(key, minid=str(progress.after(cut)), approximate=False))
        held.trimmed(cut)

    def _take_off(self, key: str, handler: Handler, cut: Position) -> Position | None:
        """Give a handler that is behind the cut nothing more of this stream. Returns what it was given last."""
        arguments = (handler.name, str(cut), str(progress.AWAY))
        answer = self._patience.insist(lambda: self._client.eval(scripts.lua("detach"), 1, key, *arguments))
        if not answer:
            return None
        given = Position.parse(answer)
        # Put away by a leader that died before it could say so, or destroyed: what it was given is not known any more.
        return handler.done or ORIGIN if given == progress.AWAY else given

    def _lost(self, loss: Lost) -> None:
        name = loss.key[len(self._prefix) + 2 : -1]
        self.lose(name, loss.expected, loss.actual)

    def _bookmark(self, count: int) -> None:
        touched, self._touched = self._touched, set()
        ends = {
            name: Position.parse(self._appender.last[stream_key(self._prefix, name)])
            for name in touched
            if name in self._handlers.attached_names
        }
        self._streams |= ends
        self._connection.execute(
            scripts.sql("bookmark", self._schema),
            {
                "names": list(ends),
                "ticks": [end.tick for end in ends.values()],
                "seqs": [end.seq for end in ends.values()],
                "count": count,
                "tick": self.position.tick,
                "seq": self.position.seq,
                "leader": self._leader,
            },
        )
        reach("relay.bookmarked")
        self._tell()

    def _tell(self) -> None:
        self.published = Published(self.position, dict(self._streams))
