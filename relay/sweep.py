"""The sweep: advances `done_to`, gives every hole below it a retry, and trims what all have finished.

It runs beside the feeds, on connections of its own. What it writes is true whoever leads: `done_to` only rises, and
only over events that were checked to have an outcome.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from queue import SimpleQueue

import psycopg
import redis
import structlog

from outbox.errors import PrefixTakenError
from outbox.failpoints import reach
from outbox.names import catch_up_key, stream_key
from outbox.position import ORIGIN, Position
from relay import progress, scripts, tick
from relay.catch_up import make_group
from relay.feed import Published
from relay.handlers import Handler
from relay.prefix import show_leader
from relay.spans import Bounds, Span, bound, parameters, together
from relay.window import window

log = structlog.get_logger()

EVERY = 1.0
"""Seconds between two rounds."""

MOST_TICKS = 1000
"""Ticks that one read covers at the most."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A main stream that ends before the entry it ended with once."""

    event_name: str
    expected: Position
    actual: Position


class Sweep:
    """A thread that runs a round every second while its relay leads."""

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection],
        client: redis.Redis,
        *,
        schema: str,
        prefix: str,
        owner: str,
        published: Callable[[], Published],
        ring: Callable[[], None],
        trimmed: Callable[[str, Position], None],
    ) -> None:
        self._connect = connect
        self._client = client
        self._schema = schema
        self._prefix = prefix
        self._owner = owner
        self._published = published
        self._ring = ring
        self._trimmed = trimmed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweep", daemon=True)
        self._settled: dict[str, Position] = {}
        self.losses: SimpleQueue[Loss] = SimpleQueue()
        self.refusal: PrefixTakenError | None = None
        """Why this relay must stop: the prefix is another's by now."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop and wait. Stopping twice is fine."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        # For those who ask the system which thread is busy; before Python 3.14 it is not told a thread's name.
        with suppress(OSError):
            Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("sweep")
        self.serve()

    def serve(self) -> None:
        """Run a round every second until stopped."""
        while not self._stop.is_set():
            try:
                with self._connect() as connection:
                    connection.execute("SELECT set_config('lock_timeout', '1s', false)")
                    while not self._stop.wait(EVERY):
                        self.round(connection)
            except PrefixTakenError as error:
                self.refusal = error
                self._ring()
                return
            except (psycopg.Error, redis.RedisError, OSError) as error:
                log.warning("sweep.failed", error=f"{type(error).__name__}: {error}")
                self._stop.wait(EVERY)

    def round(self, connection: psycopg.Connection) -> None:
        """Look at every handler once."""
        published = self._published()
        show_leader(self._client, self._prefix, self._owner)
        rows = connection.execute(
            "SELECT name, event_name, attached, done_tick, done_seq, fed_tick, fed_seq"
            f" FROM {self._schema}.handler WHERE done_tick IS NOT NULL ORDER BY event_name".encode()
        ).fetchall()
        spans: list[Span] = []
        for name, event_name, attached, done_tick, done_seq, fed_tick, fed_seq in rows:
            done, fed = Position(done_tick, done_seq), None if fed_tick is None else Position(fed_tick, fed_seq)
            handler = Handler(name, event_name, attached, done, fed)
            spans.append(Span(name, event_name, done, self._look(connection, handler, published)))
        proved = {span.handler: span.done for span in spans} | self.check(connection, spans)
        trim: dict[str, list[Position]] = {}
        for name, event_name, attached, *_ in rows:
            if attached:
                trim.setdefault(event_name, []).append(proved[name])
        for event_name, reached_by_each in trim.items():
            self._trim(event_name, min(reached_by_each))
            reach("sweep.trimmed")

    def _look(self, connection: psycopg.Connection, handler: Handler, published: Published) -> Position:
        """See up to where one handler seems to have finished: `done_to`, or beyond."""
        assert handler.done is not None
        if self._settled.get(handler.name) == handler.done == published.position and handler.attached:
            # Nothing was said since everything was done; but is Redis still what it was?
            main = progress.read(self._client, stream_key(self._prefix, handler.event_name), handler.name)
            self._lost(handler, main, published)
            return handler.done
        key = stream_key(self._prefix, handler.event_name)
        main = progress.read(self._client, key, handler.name)
        if self._lost(handler, main, published):
            return handler.done
        if handler.attached and main.delivered in (None, progress.AWAY):
            if self._still_attached(connection, handler):
                log.warning("group.lost", handler=handler.name, stream=key)
                make_group(self._client, key, handler.name, handler.done, move=True)
            return handler.done
        own = progress.read(self._client, catch_up_key(self._prefix, handler.event_name, handler.name), handler.name)
        target = progress.finished_everywhere(
            own, main, attached=handler.attached, published=published.position, fed=handler.fed
        )
        return handler.done if target is None else max(target, handler.done)

    def _still_attached(self, connection: psycopg.Connection, handler: Handler) -> bool:
        query = f"SELECT attached FROM {self._schema}.handler WHERE name = %s".encode()
        row = connection.execute(query, [handler.name]).fetchone()
        return row is not None and bool(row[0])

    def _lost(self, handler: Handler, main: progress.Progress, published: Published) -> bool:
        expected = published.streams.get(handler.event_name, ORIGIN)
        if not handler.attached or main.last >= expected:
            return False
        self.losses.put(Loss(handler.event_name, expected, main.last))
        self._ring()
        return True

    def check(self, connection: psycopg.Connection, spans: list[Span]) -> dict[str, Position]:
        """Fill the holes in all spans and note how far all is done. Spans of the same part of the log are read at once,
        long ones in several reads. Returns how far each handler came."""
        proved: dict[str, Position] = {}
        left = {span.handler: span for span in spans if span.target > span.done}
        while left and not self._stop.is_set():
            group = together(left.values())
            start, end = group[0].done, max(span.target for span in group)
            ticks = window(tick.load(connection, self._schema, start.tick, end.tick, MOST_TICKS), start)
            covered = [found for span in group if (found := bound(span, ticks))]
            if not covered:
                for span in group:
                    del left[span.handler]
                continue
            self._fill(connection, covered)
            for each in covered:
                span = each.span
                self._note(connection, span.handler, each.reached)
                proved[span.handler] = self._settled[span.handler] = each.reached
                if each.reached < span.target:
                    left[span.handler] = replace(span, done=each.reached)
                else:
                    del left[span.handler]
        return proved

    def _fill(self, connection: psycopg.Connection, covered: list[Bounds]) -> None:
        statement = _statement(self._schema, many=len(covered) > 1)
        found = connection.execute(statement, parameters(covered)).fetchall()
        reach("sweep.filled")
        names = {each.span.handler: each.span.event_name for each in covered}
        for handler, holes in found:
            log.warning("sweep.holes", handler=handler, event_name=names[handler], events=holes)

    def _note(self, connection: psycopg.Connection, handler: str, done: Position) -> None:
        connection.execute(
            f"UPDATE {self._schema}.handler SET done_tick = %(tick)s, done_seq = %(seq)s WHERE name = %(name)s"
            " AND (done_tick, done_seq) < (%(tick)s, %(seq)s)".encode(),
            {"tick": done.tick, "seq": done.seq, "name": handler},
        )
        reach("sweep.noted")

    def _trim(self, event_name: str, finished: Position) -> None:
        minid = str(progress.after(finished))
        self._client.xtrim(stream_key(self._prefix, event_name), minid=minid, approximate=True)
        self._trimmed(event_name, finished)


@cache
def _statement(schema: str, *, many: bool) -> bytes:
    """The statement that fills the holes in one span, or in many."""
    span = scripts.sql("span_many" if many else "span_one", schema)
    return scripts.sql("fill_holes", schema).replace(b"{span}", span)
