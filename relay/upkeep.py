"""Upkeep: partitions ahead of time, retention behind, the default partitions empty, ticks no more than are needed.

One round is `run`. A leading relay runs one about every minute in a thread and on a connection of its own;
`outbox upkeep` runs one for installations whose relay owns no tables.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import TypeVar

import psycopg
import structlog

from outbox.position import ORIGIN, Position
from relay import retention, scripts
from relay.partitions import InTheWay, Partitions
from relay.retention import Partition, Subscriber
from relay.thinning import thin

T = TypeVar("T")
log = structlog.get_logger()

EVERY = 60.0
"""Seconds between two rounds of a leading relay."""

SOON = 30.0
"""Seconds until the next round when something was in the way of one."""

MAY_BLOCK = 0.1
"""Seconds for which one change may keep writers waiting."""

TRIES = 3
"""How often a round tries a change that something is in the way of."""

BETWEEN_TRIES = 0.2
"""Seconds between them, in which writers go on."""

MOVED_PER_SECOND = 20_000
"""Rows of the default partition that are surely moved in a second, indexes included."""

LOOKED_THROUGH = 30.0
"""Seconds that looking through a partition may take before it goes."""

BATCH = 10_000
"""Rows that are deleted in one transaction."""

NOT_ALLOWED = (
    "this role owns no tables, so it makes and drops no partitions: run `outbox upkeep` once a day as the owner"
)


@dataclass
class Report:
    """What a round did, or would do: partitions made and dropped, rows moved from or deleted in the default ones, ticks
    deleted; and what it found: what is `left` for the next round and why, handlers that hold expired events back
    (`held_by`), handlers that nobody serves any more (`unserved`), and how many events go whose names nobody handles
    (`unhandled`). `allowed` is False for a role without tables."""

    made: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    moved: int = 0
    deleted: int = 0
    ticks: int = 0
    left: list[str] = field(default_factory=list)
    held_by: list[str] = field(default_factory=list)
    unserved: list[str] = field(default_factory=list)
    unhandled: dict[str, int] = field(default_factory=dict)
    allowed: bool = True

    @property
    def changed(self) -> bool:
        """Whether anything was done."""
        return bool(self.made or self.dropped or self.moved or self.deleted or self.ticks)


def run(
    connection: psycopg.Connection,
    schema: str,
    keep: timedelta,
    *,
    now: datetime | None = None,
    dry_run: bool = False,
    may_block: float = MAY_BLOCK,
    pause: Callable[[float], object] = time.sleep,
) -> Report:
    """One round on an autocommit connection of `lead.connect(…, role="upkeep")`.

    `keep` is how long events are retained, `now` the moment to work for (the server's clock by default), `may_block`
    the seconds for which a change may keep writers waiting. `dry_run` reports what would be done. Raises
    `psycopg.Error` only for what is no matter of locks.

    >>> run(connection, "outbox", timedelta(days=7)).made
    ['event_p20260207', 'delivery_p20260207']
    """
    return _Round(connection, schema, keep, now, dry_run, may_block, pause).run()


class _Round:
    def __init__(
        self,
        connection: psycopg.Connection,
        schema: str,
        keep: timedelta,
        now: datetime | None,
        dry_run: bool,
        may_block: float,
        pause: Callable[[float], object],
    ) -> None:
        self._connection = connection
        self._schema = schema
        self._dry_run = dry_run
        self._pause = pause
        self._partitions = Partitions(connection, schema, may_block)
        self._most = int(may_block * MOVED_PER_SECOND)
        self._now = now or self._clock()
        self._horizon = retention.horizon(self._now, keep)
        self._keep = keep
        self._gone: set[datetime | None] = set()
        self.report = Report()

    def run(self) -> Report:
        report = self.report
        self._look_at_handlers()
        report.allowed = self._partitions.may_change()
        if report.allowed:
            found = self._partitions.all()
            waiting = {each.table: self._partitions.waiting(each) for each in found if each.default}
            for table in ("event", "delivery"):
                self._make(table, found, waiting.get(table, {}))
            self._retire_events(found, waiting.get("event", {}))
            self._retire_deliveries(found, waiting.get("delivery", {}))
        report.ticks = thin(self._connection, self._schema, self._needed.tick, dry_run=self._dry_run, pause=self._pause)
        return report

    def _clock(self) -> datetime:
        row = self._connection.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        found: datetime = row[0]
        return found

    def _look_at_handlers(self) -> None:
        rows = self._connection.execute(scripts.sql("subscribers", self._schema)).fetchall()
        row = self._connection.execute(f"SELECT tick, seq FROM {self._schema}.relay".encode()).fetchone()
        assert row is not None
        subscribers = {
            name: Subscriber(name, seen, None if tick is None else Position(tick, seq))
            for name, seen, tick, seq, _, _ in rows
        }
        gone = {each.name for each in retention.unserved([*subscribers.values()], self._now, self._keep)}
        self.report.unserved = sorted(gone)
        served = [row for row in rows if row[0] not in gone]
        self._done = {name: subscribers[name].done or ORIGIN for name, *_ in served}
        self._needed = min(
            [Position(*row), *(ORIGIN if tick is None else Position(tick, seq) for *_, tick, seq in served)]
        )
        self._all_done = min([Position(*row), *self._done.values()])

    # Making

    def _make(self, table: str, found: list[Partition], waiting: dict[date, int]) -> None:
        default = next((each for each in found if each.table == table and each.default), None)
        today = self._now.astimezone(UTC).date()
        for day in retention.to_make(found, table, today, [day for day in waiting if day >= self._horizon.date()]):
            rows = waiting.get(day, 0)
            if rows > self._most:
                self.report.left.append(
                    f"{rows} rows of {table} for {day} are in the default partition, more than can be moved without"
                    " keeping writers waiting: they are deleted when they expire, or moved at a quiet hour by"
                    f" `outbox upkeep --may-block {rows // MOVED_PER_SECOND + 1}`"
                )
                continue
            # Of other days nothing comes in meanwhile; should it, attaching fails and is tried again.
            source = default if rows or day == today else None
            if self._dry_run:
                self.report.made.append(f"{table}_p{day:%Y%m%d}")
                self.report.moved += rows
                continue
            made = self._try(f"{table} for {day}", partial(self._partitions.make, table, day, source))
            if made is None:
                # What is in the way of one is in the way of the others.
                return
            self.report.made.append(made[0])
            self.report.moved += made[1]

    # Retiring

    def _retire_events(self, found: list[Partition], waiting: dict[date, int]) -> None:
        """Drop what is expired and passed by all, the oldest first, up to the first that is not."""
        pieces = []
        for piece in _pieces(found, "event", self._horizon, waiting):
            if not self._passed(piece):
                self.report.held_by = self._holders(piece)
                break
            if self._may_go(piece):
                pieces.append(piece)
                self._look_for_unhandled(piece)
        self._gone = {piece.upper for piece in pieces}
        self._retire(pieces, self._may_go, waiting, note=True)

    def _look_for_unhandled(self, piece: Partition) -> None:
        """Note what goes that no handler ever got."""
        lower, upper = _range(piece)
        try:
            with self._connection.transaction():
                self._connection.execute("SELECT set_config('statement_timeout', %s, true)", [f"{LOOKED_THROUGH:.0f}s"])
                found = self._connection.execute(
                    scripts.sql("unhandled", self._schema), {"lower": lower, "upper": upper}
                ).fetchall()
        except psycopg.errors.QueryCanceled:
            log.warning("upkeep.not_looked_through", partition=piece.name, seconds=LOOKED_THROUGH)
            return
        for name, count in found:
            self.report.unhandled[name] = self.report.unhandled.get(name, 0) + count

    def _retire_deliveries(self, found: list[Partition], waiting: dict[date, int]) -> None:
        """Drop the outcomes of events that are gone."""
        row = self._connection.execute(f"SELECT retained_from FROM {self._schema}.relay".encode()).fetchone()
        before = self._horizon if self._dry_run else row and row[0]
        pieces = [
            piece
            for piece in (_pieces(found, "delivery", before, waiting) if before else ())
            if piece.default or self._settled(piece) or (self._dry_run and piece.upper in self._gone)
        ]
        self._retire(pieces, self._settled, waiting, note=False)

    def _retire(
        self, pieces: list[Partition], allowed: Callable[[Partition], bool], waiting: dict[date, int], *, note: bool
    ) -> None:
        """Empty all pieces, in no writer's way; then drop those that are partitions, until somebody is in the way."""
        if self._dry_run:
            self.report.dropped += [piece.name for piece in pieces if not piece.default]
            self.report.deleted += sum(waiting[_range(piece)[0].date()] for piece in pieces if piece.default)
            return
        for piece in pieces:
            noted = partial(self._note, piece) if note else _nothing
            if piece.default:
                noted()
                while deleted := self._partitions.clear(piece, *_range(piece), BATCH):
                    self.report.deleted += deleted
                    self._pause(0)
            else:
                self._try(piece.name, partial(self._partitions.empty, piece, partial(allowed, piece), noted))
        for piece in pieces:
            if not piece.default:
                dropped = self._try(piece.name, partial(self._partitions.drop, piece, partial(allowed, piece)))
                if dropped is None:
                    return
                self.report.dropped += [piece.name] if dropped else []

    def _note(self, piece: Partition) -> None:
        """Deliveries of events as old as this may be gone from now on."""
        self._connection.execute(
            f"UPDATE {self._schema}.relay SET retained_from = %(upper)s"
            " WHERE retained_from IS NULL OR retained_from < %(upper)s".encode(),
            {"upper": piece.upper},
        )

    def _passed(self, piece: Partition, position: Position | None = None) -> bool:
        """Whether the relay and every served handler are past all events of a piece."""
        done = self._all_done if position is None else position
        lower, upper = _range(piece)
        row = self._connection.execute(
            f"SELECT (SELECT snapshot::text FROM {self._schema}.tick WHERE id < %(tick)s ORDER BY id DESC LIMIT 1),"
            f" (SELECT snapshot::text FROM {self._schema}.tick WHERE id = %(tick)s)".encode(),
            {"tick": done.tick},
        ).fetchone()
        assert row is not None
        before = row[0] or "1:1:"
        parameters = {"lower": lower, "upper": upper, "before": before, "own": row[1] or before, "seq": done.seq}
        return self._ask("passed", parameters)

    def _holders(self, piece: Partition) -> list[str]:
        """The handlers that an expired piece is kept for."""
        return sorted(name for name, done in self._done.items() if not self._passed(piece, done))

    def _may_go(self, piece: Partition) -> bool:
        """Whether nobody needs a piece's events any more."""
        lower, upper = _range(piece)
        return self._passed(piece) and not self._ask("retrying", {"lower": lower, "upper": upper})

    def _settled(self, piece: Partition) -> bool:
        lower, upper = _range(piece)
        return self._ask("settled", {"lower": lower, "upper": upper})

    def _ask(self, name: str, parameters: dict[str, object]) -> bool:
        row = self._connection.execute(scripts.sql(name, self._schema), parameters).fetchone()
        return row is not None and bool(row[0])

    def _try(self, what: str, change: Callable[[], T]) -> T | None:
        """The result of a change, or None when something is in the way of it."""
        for turn in range(TRIES):
            if turn:
                self._pause(BETWEEN_TRIES)
            try:
                return change()
            except (psycopg.errors.DuplicateTable, psycopg.errors.UndefinedTable):
                # Another upkeep was faster.
                return None
            except InTheWay as error:
                reason = error.diag.message_primary or type(error).__name__
                if isinstance(error, psycopg.errors.QueryCanceled):
                    # It takes too long, and would the next time.
                    break
        self.report.left.append(f"{what}: {reason}")
        return None


def _nothing() -> None:
    """Nothing is to be noted."""


def _pieces(found: list[Partition], table: str, before: datetime, waiting: dict[date, int]) -> list[Partition]:
    """What is expired, the oldest first: partitions, and of the default one a piece for each day it has rows of."""
    default = next((each for each in found if each.table == table and each.default), None)
    pieces = retention.expired(found, table, before)
    if default is not None:
        days = [retention.bounds(day) for day in waiting]
        pieces += [Partition(table, default.name, *day, default=True) for day in days if day[1] <= before]
    return sorted(pieces, key=lambda piece: (piece.upper, piece.name))


def _range(piece: Partition) -> tuple[datetime, datetime]:
    assert piece.upper is not None
    return piece.lower or datetime(1, 1, 1, tzinfo=UTC), piece.upper


class Upkeep:
    """A thread that runs a round at once, and then about every minute, while its relay leads."""

    def __init__(self, connect: Callable[[], psycopg.Connection], *, schema: str, keep: timedelta) -> None:
        self._connect = connect
        self._schema = schema
        self._keep = keep
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._said: dict[str, object] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait a moment: a round that still runs harms nobody. Stopping twice is fine."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)

    def _run(self) -> None:
        while not self._stop.is_set():
            rest = EVERY
            try:
                with self._connect() as connection:
                    report = run(connection, self._schema, self._keep, pause=self._breathe)
                self._tell(report)
                rest = SOON if report.left else EVERY
            except _Stopped:
                return
            except psycopg.Error as error:
                log.warning("upkeep.failed", error=f"{type(error).__name__}: {error}")
            self._stop.wait(rest)

    def _breathe(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise _Stopped

    def _tell(self, report: Report) -> None:
        if report.changed:
            done = {name: value for name, value in asdict(report).items() if value and name in _DONE}
            log.info("upkeep.done", **done)
        if self._news("not_allowed", not report.allowed):
            log.warning("upkeep.not_allowed", advice=NOT_ALLOWED)
        if self._news("left", report.left):
            log.warning("upkeep.left", left=report.left)
        if self._news("held_back", report.held_by):
            log.warning("upkeep.held_back", handlers=report.held_by)
        if self._news("unserved", report.unserved):
            log.warning("handler.unserved", handlers=report.unserved)
        if self._news("unhandled", report.unhandled):
            log.warning("event.unhandled", events=report.unhandled)

    def _news(self, what: str, found: object) -> bool:
        """Whether something is to be told: once, and again when it has changed."""
        new = bool(found) and self._said.get(what) != found
        self._said[what] = found
        return new


_DONE = ("made", "dropped", "moved", "deleted", "ticks")


class _Stopped(Exception):
    """The relay leads no more."""
