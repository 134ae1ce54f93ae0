"""How far everything is: relay, handlers, workers. Read-only, and bounded however far behind something is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from psycopg.rows import dict_row

from outbox.admin.statement import statement
from outbox.database import Database, opened
from outbox.names import lock_id
from outbox.position import Position

LOOK_AT = 20_000
"""Rows that each count looks at before it says "about"; the handlers share them."""

ALIVE = timedelta(seconds=30)
"""A worker that was silent for so long is not taken for alive any more. It says every ten seconds that it is."""


@dataclass(frozen=True)
class Count:
    """A number of rows. `exact` is False when counting stopped there: it is more, `estimate` says about how many.

    >>> str(Count(12)), str(Count(20_000, exact=False, estimate=1_234_567))
    ('12', '≈ 1,200,000')
    """

    value: int
    exact: bool = True
    estimate: int | None = None

    @property
    def likely(self) -> int:
        """The best guess."""
        return self.value if self.exact else max(self.value, self.estimate or 0)

    def __str__(self) -> str:
        if self.exact:
            return f"{self.value:,}"
        # Two digits that count: the rest would look like knowledge.
        scale = 10 ** max(0, len(str(self.likely)) - 2)
        return f"≈ {self.likely // scale * scale:,}" if self.likely > self.value else f"≥ {self.value:,}"


@dataclass(frozen=True)
class Leader:
    """The relay that leads: the database session that holds its lock, and what it last wrote about itself.

    `asleep`: it waits for LISTEN to wake it, and polls every five seconds besides; None when that may not be read.
    `listens`: a notification of this session reaches the relay. It does not through a pooler.
    """

    pid: int
    application_name: str
    address: str | None
    since: datetime | None
    name: str | None
    heartbeat: datetime | None
    asleep: bool | None = None
    listens: bool = True


@dataclass(frozen=True)
class Standby:
    """A relay that waits to lead, as its database session. Where it runs only its own role and superusers may see."""

    pid: int
    address: str | None
    since: datetime | None


@dataclass(frozen=True)
class WorkerStatus:
    """A worker process that said within the last 30 s that it lives."""

    name: str
    handlers: tuple[str, ...]
    started_at: datetime
    seen_at: datetime


@dataclass(frozen=True)
class HandlerStatus:
    """One handler. `lag` counts its events without any outcome, published or not; of those that were looked at,
    `oldest_waiting_at` is the oldest.

    `retrying` counts what is to be tried again; `running` is how many of these are being tried, and `overdue_since` the
    oldest due time of one that is not. `workers` is how many live ones serve it.
    """

    name: str
    event_name: str
    state: Literal["attached", "detached", "new"]
    paused: bool
    done_to: Position | None
    fed: Position | None
    lag: Count
    oldest_waiting_at: datetime | None
    retrying: Count
    dead: Count
    last_seen: datetime
    running: int = 0
    overdue_since: datetime | None = None
    workers: int = 0

    @property
    def oldest_eligible_at(self) -> datetime | None:
        """Since when something could have been run here that was not; None when there is nothing or it is paused."""
        return None if self.paused else _earliest((self.oldest_waiting_at, self.overdue_since))


@dataclass(frozen=True)
class Status:
    """An outbox at one moment, by the database's clock. `unpublished` counts committed events no published tick saw;
    `published_minute` and `published_minutes` events that were published in the last one and five minutes."""

    schema: str
    at: datetime
    position: Position | None
    last_tick_at: datetime | None
    leader: Leader | None
    events: Count
    unpublished: Count
    oldest_unpublished_at: datetime | None
    handlers: tuple[HandlerStatus, ...]
    standbys: tuple[Standby, ...] = ()
    workers: tuple[WorkerStatus, ...] = ()
    dead: Count = field(default_factory=lambda: Count(0))
    published_minute: int = 0
    published_minutes: int = 0

    @property
    def last_tick_age(self) -> timedelta | None:
        """Time since the last batch was taken; it grows while nothing is written."""
        return None if self.last_tick_at is None else self.at - self.last_tick_at

    @property
    def unpublished_age(self) -> timedelta | None:
        """How long the oldest unpublished event has been waiting; None when there is none."""
        return None if self.oldest_unpublished_at is None else self.at - self.oldest_unpublished_at

    @property
    def oldest_eligible_age(self) -> timedelta | None:
        """How long the oldest event waits that could have been run by now: the figure to be woken by.

        It was committed and has no outcome at one of its handlers, or its retry is overdue. What is paused, put off
        or dead does not count; None when nothing waits.
        """
        times = [self.oldest_unpublished_at, *(handler.oldest_eligible_at for handler in self.handlers)]
        found = _earliest(times)
        return None if found is None else max(timedelta(0), self.at - found)


def status(database: Database, schema: str | None = None, *, look_at: int = LOOK_AT) -> Status:
    """How far everything is.

    `database` is a URL, an open psycopg connection or `Settings`; `schema` defaults to that of the settings, else to
    `outbox`. Counting stops at `look_at` rows each. Raises `SchemaError` when `outbox migrate` has not run, and
    `UnreachableError` when there is no server.

    >>> status("postgresql:///shop").unpublished
    Count(value=0, exact=True, estimate=None)
    """
    with (
        opened(database, schema) as (connection, where),
        connection.transaction(),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        # PostgreSQL with LLVM would compile these statements for seconds, to run them for milliseconds.
        cursor.execute("SELECT set_config('jit', 'off', true)")
        asked = {
            "most": look_at,
            "lock": lock_id("relay", where),
            "relay": f"outbox relay {where}",
            "alive": ALIVE.total_seconds(),
        }
        row = cursor.execute(statement("overview", where), asked).fetchone()
        assert row is not None
        handlers = tuple(map(_handler, cursor.execute(statement("handlers", where), asked)))
    return Status(
        schema=where,
        at=row["at"],
        position=_position(row["tick"], row["seq"]),
        last_tick_at=row["last_tick_at"],
        leader=_leader(row),
        events=_count(row["events"], row["events"], look_at, row["events_estimate"]),
        unpublished=_count(row["unpublished"], row["unpublished"], look_at, row["unpublished_estimate"]),
        oldest_unpublished_at=row["oldest_unpublished_at"],
        handlers=handlers,
        standbys=tuple(Standby(**_timed(found, "since")) for found in row["standbys"]),
        workers=tuple(
            WorkerStatus(**{**_timed(found, "started_at", "seen_at"), "handlers": tuple(found["handlers"])})
            for found in row["workers"]
        ),
        dead=_count(row["dead"], row["dead"], look_at),
        published_minute=row["published_minute"],
        published_minutes=row["published_minutes"],
    )


def _count(value: int, looked: int, most: int, estimate: int | None = None) -> Count:
    return Count(value) if looked < most else Count(value, exact=False, estimate=estimate)


def _earliest(times: Iterable[datetime | None]) -> datetime | None:
    return min((time for time in times if time is not None), default=None)


def _timed(found: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """What came as JSON, with its times as times."""
    return {**found, **{name: found[name] and datetime.fromisoformat(found[name]) for name in names}}


def _position(tick: int | None, seq: int | None) -> Position | None:
    return None if tick is None or seq is None else Position(tick, seq)


def _leader(row: Mapping[str, Any]) -> Leader | None:
    if row["pid"] is None:
        return None
    return Leader(
        pid=row["pid"],
        application_name=row["application_name"] or "",
        address=row["client_address"],
        since=row["backend_start"],
        name=row["leader"],
        heartbeat=row["heartbeat"],
        asleep=row["asleep"],
        listens=row["backend_pid"] in (None, row["pid"]),
    )


def _handler(row: Mapping[str, Any]) -> HandlerStatus:
    done_to = _position(row["done_tick"], row["done_seq"])
    most = row["most"]
    return HandlerStatus(
        name=row["name"],
        event_name=row["event_name"],
        state="attached" if row["attached"] else "new" if done_to is None else "detached",
        paused=row["paused"],
        done_to=done_to,
        fed=_position(row["fed_tick"], row["fed_seq"]),
        lag=_count(row["waiting"], row["looked"], most, row["waiting_estimate"]),
        oldest_waiting_at=row["oldest"],
        retrying=_count(row["retrying"], row["retrying"], most),
        dead=_count(row["dead"], row["dead"], most),
        last_seen=row["last_seen"],
        running=row["running"],
        overdue_since=row["overdue_since"],
        workers=row["workers"],
    )
