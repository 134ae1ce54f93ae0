"""Catch-up feeds: each serves one detached handler from PostgreSQL until it can be attached to the main stream.

New handlers, lost Redis data and slow consumers are all the same to it: a position, a filter and a target stream.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import replace
from itertools import count

import psycopg
import redis
import structlog

from outbox import spans
from outbox.failpoints import reach
from outbox.names import catch_up_key, stream_key
from outbox.position import END, ORIGIN, Position
from relay import bounds, progress, scripts, tick
from relay.append import Append, Appender
from relay.bounds import Contents
from relay.feed import MainFeed
from relay.handlers import Handler, Handlers
from relay.measures import Measures
from relay.patience import Patience
from relay.tracing import sending
from relay.window import FEWEST, next_most, window

log = structlog.get_logger()

WAIT_FOR_ROOM = 0.02, 0.5
"""Seconds until feeds that wait for room look again: at first, and in the end."""

PIECE = 500
"""Events after which a feed lets the others and the main feed go on: more, and their events wait noticeably. Twice what
the main feed had last if that is more, or it would never catch up under load."""

PART_BYTES = 256 << 10
"""Bytes after which a feed's chunk is closed: its position is noted after each."""

PROGRESS_EVERY = 1.0
"""Seconds between two lines in the log about a feed that takes longer."""

_cursors = count()


class Feed:
    """The feed of one detached handler. `step` does a bounded piece of work."""

    def __init__(self, handler: Handler, feeds: CatchUp) -> None:
        assert handler.fed is not None
        self.handler = handler
        self.fed: Position = handler.fed
        self.key = catch_up_key(feeds.prefix, handler.event_name, handler.name)
        self._feeds = feeds
        self._chunks: Generator[tick.Chunk] | None = None
        self._window = 0
        self._most = FEWEST
        self._complete = -1
        self._started = False
        self._held = Contents(bounds.CATCH_UP)
        self.published = 0
        self._first: int | None = None
        self._reported = time.monotonic()

    def step(self, piece: int) -> bool:
        """Put the next `piece` events on the stream, or attach the handler when there are none. False without room."""
        room = self._room()
        if not self._started:
            self._start(room)
        elif room.last < Position.parse(self._feeds.appender.last[self.key]):
            self._restart()
            return True
        if room.length >= bounds.CATCH_UP.entries or self._held.size >= bounds.CATCH_UP.size:
            return False
        if self._complete == self._feeds.main.position.tick:
            self._attach()
            return True
        rows = 0
        while rows < piece and room.length + rows < bounds.CATCH_UP.entries and self._held.size < bounds.CATCH_UP.size:
            if self._chunks is None:
                self._chunks = self._read()
            chunk = next(self._chunks, None)
            if chunk is None:
                self._chunks = None
                self._complete = self._window
                self._moved(Position(self._window, END))
                # At once: while events keep coming, the main feed will have moved by the next step.
                if self._complete == self._feeds.main.position.tick:
                    self._attach()
                return True
            if not self._append(chunk):
                self._restart()
                return True
            reach("feed.appended")
            rows += chunk.rows
            self.published += chunk.rows
            self._feeds.measures.fed[self.handler.name] += chunk.rows
            self._held.add(chunk.last, entries=chunk.rows, size=chunk.size)
            self._moved(chunk.last)
            self._report(chunk)
        return True

    def _append(self, chunk: tick.Chunk) -> bool:
        """Whether there was a stream without a hole to put it on."""
        with sending(self._feeds.tracer, iter((chunk,))) as (traced,):
            self._feeds.appender.submit([Append(self.key, name, entries) for name, entries in traced.parts.items()])
            return not self._feeds.appender.settle()

    def close(self) -> None:
        if self._chunks is not None:
            self._chunks.close()
            self._chunks = None

    def _room(self) -> progress.Progress:
        """How full the stream is, after dropping what the handler has finished."""
        feeds = self._feeds
        state = feeds.patience.insist(lambda: progress.read(feeds.client, self.key, self.handler.name))
        finished = progress.finished(state, ORIGIN)
        if finished is not None and state.length:
            kept = str(progress.after(finished))
            dropped = feeds.patience.insist(lambda: feeds.client.xtrim(self.key, minid=kept, approximate=False))
            state = replace(state, length=state.length - int(dropped))
            self._held.trimmed(finished)
        return state

    def _start(self, state: progress.Progress) -> None:
        feeds = self._feeds
        # An earlier leader may have published more than it could note.
        self._moved(state.last)
        feeds.appender.expect(self.key, state.last)
        if state.length:
            size = feeds.patience.insist(lambda: feeds.client.memory_usage(self.key))
            self._held.add(state.last, entries=state.length, size=int(size or 0))
        if state.delivered is None:
            feeds.patience.insist(lambda: make_group(feeds.client, self.key, self.handler.name, ORIGIN))
        self._started = True
        log.info("feed.started", handler=self.handler.name, event_name=self.handler.event_name, position=str(self.fed))

    def _restart(self) -> None:
        log.warning("stream.lost", handler=self.handler.name, stream=self.key)
        self.close()
        # First the row: what is left of the stream by then is a beginning, behind which a feed can go on.
        self._feeds.handlers.restart_feed(self.handler)
        reach("feed.restarted")
        self._feeds.patience.insist(lambda: self._feeds.client.delete(self.key))
        self._feeds.forget(self)

    def _read(self) -> Generator[tick.Chunk]:
        feeds = self._feeds
        upto = feeds.main.position.tick
        ticks = window(tick.load(feeds.connection, feeds.schema, self.fed.tick, upto, self._most + 1), self.fed)
        self._window = ticks[-1].id if ticks else upto
        if not ticks:
            return
        parameters = {
            "ticks": [t.id for t in ticks],
            "from": [str(t.since) for t in ticks],
            "to": [str(t.snapshot) for t in ticks],
            "name": self.handler.event_name,
            "handler": self.handler.name,
            "after_tick": self.fed.tick,
            "after_seq": self.fed.seq,
        }
        name = f"catch_up_{next(_cursors)}"
        # The server sorts and keeps all rows before it answers to DECLARE.
        began = time.monotonic()
        with tick.open_cursor(feeds.connection, name, scripts.sql("catch_up", feeds.schema), parameters) as cursor:
            fetches = tick.fetches(cursor, name)
            rows = next(fetches, None)
            self._most = next_most(self._most, time.monotonic() - began)
            while rows is not None:
                yield from tick.chunks(rows, None, PART_BYTES)
                rows = next(fetches, None)

    def _moved(self, position: Position) -> None:
        if position > self.fed:
            self.fed = position
        self._feeds.handlers.feed_moved(self.handler, self.fed)
        reach("feed.moved")

    def _report(self, chunk: tick.Chunk) -> None:
        """Say how far it is, once a second."""
        if self._first is None:
            self._first = chunk.last.seq - chunk.rows
        now = time.monotonic()
        if now - self._reported >= PROGRESS_EVERY:
            self._reported = now
            log.info(
                "feed.progress",
                handler=self.handler.name,
                event_name=self.handler.event_name,
                position=str(self.fed),
                events=self.published,
                percent=percent(self._first, self.fed.seq, self._feeds.last_seq()),
            )

    def _attach(self) -> None:
        feeds = self._feeds
        event_name, position = self.handler.event_name, feeds.main.position
        feeds.main.attach_point(event_name)
        key = stream_key(feeds.prefix, event_name)
        # First the group, then the row: a crash in between repeats both.
        feeds.patience.insist(lambda: make_group(feeds.client, key, self.handler.name, position, move=True))
        reach("feed.grouped")
        feeds.handlers.attach(self.handler)
        reach("feed.attached")
        feeds.forget(self)
        log.info(
            "handler.attached",
            handler=self.handler.name,
            event_name=event_name,
            position=str(position),
            fed=self.published,
        )


class CatchUp:
    """All catch-up feeds, stepped in turn between two ticks of the main feed."""

    def __init__(
        self,
        connection: psycopg.Connection,
        client: redis.Redis,
        *,
        schema: str,
        prefix: str,
        handlers: Handlers,
        appender: Appender,
        patience: Patience,
        main: MainFeed,
        measures: Measures,
    ) -> None:
        self.connection = connection
        self.client = client
        self.schema = schema
        self.prefix = prefix
        self.handlers = handlers
        self.appender = appender
        self.patience = patience
        self.main = main
        self.measures = measures
        self.tracer = spans.tracer()
        self._feeds: dict[str, Feed] = {}
        self._waited = 0.0

    def step(self, events: int) -> float | None:
        """A piece of every feed, after the main feed had `events`. Returns the seconds until the next: 0 when there is
        more, None without any."""
        detached = {handler.name: handler for handler in self.handlers.detached}
        for name in self._feeds.keys() - detached.keys():
            self._feeds.pop(name).close()
        moved = False
        for name, handler in detached.items():
            feed = self._feeds.get(name)
            if feed is None or handler.fed is None or handler.fed < feed.fed:
                # New, or sent back to where all is done.
                if feed is not None:
                    feed.close()
                feed = self._feeds[name] = Feed(handler, self)
            moved |= feed.step(max(PIECE, 2 * events))
        if not detached:
            return None
        shortest, longest = WAIT_FOR_ROOM
        self._waited = 0.0 if moved else min(longest, max(shortest, 2 * self._waited))
        return self._waited

    def last_seq(self) -> int:
        """The highest seq there is, of whatever name."""
        query = f"SELECT coalesce(pg_sequence_last_value('{self.schema}.event_seq'), 0)"
        row = self.connection.execute(query.encode()).fetchone()
        assert row is not None
        return int(row[0])

    def forget(self, feed: Feed) -> None:
        """Drop a feed that has come to its end; should its handler be detached again, that is another feed."""
        feed.close()
        del self._feeds[feed.handler.name]


def percent(first: int, at: int, last: int) -> int:
    """How far a feed is that began at seq `first`: nearly all that is left of it lies between `at` and `last`."""
    return min(100, max(0, 100 * (at - first) // max(1, last - first)))


def make_group(client: redis.Redis, key: str, group: str, position: Position, *, move: bool = False) -> None:
    """Create a group that was given all up to `position`, and its stream if need be. `move` sets one that exists."""
    try:
        client.xgroup_create(key, group, id=str(position), mkstream=True)
    except redis.exceptions.ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise
        if move:
            client.xgroup_setid(key, group, id=str(position))
