"""How far everything is: the relay, and each handler. Read-only, and bounded however far behind something is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from psycopg.rows import dict_row

from outbox.admin.statement import statement
from outbox.database import Database, opened
from outbox.names import lock_id
from outbox.position import Position

LOOK_AT = 100_000
"""Rows that each count looks at before it says "at least"."""


@dataclass(frozen=True)
class Count:
    """A number of rows; `exact` is False when counting stopped there and it may be more."""

    value: int
    exact: bool = True

    def __str__(self) -> str:
        return f"{self.value:,}" if self.exact else f"≥ {self.value:,}"


@dataclass(frozen=True)
class Leader:
    """The relay that leads: the database session that holds its lock, and what it last wrote about itself."""

    pid: int
    application_name: str
    address: str | None
    since: datetime | None
    name: str | None
    heartbeat: datetime | None


@dataclass(frozen=True)
class HandlerStatus:
    """One handler. `lag` counts its events without any outcome, published or not; of those that were looked at,
    `oldest_waiting_at` is the oldest."""

    name: str
    event_name: str
    state: Literal["attached", "detached", "new"]
    paused: bool
    done_to: Position | None
    fed: Position | None
    lag: Count
    oldest_waiting_at: datetime | None
    done: Count
    retrying: Count
    dead: Count
    last_seen: datetime


@dataclass(frozen=True)
class Status:
    """An outbox at one moment, by the database's clock. `unpublished` counts committed events no published tick saw."""

    schema: str
    at: datetime
    position: Position | None
    last_tick_at: datetime | None
    leader: Leader | None
    events: Count
    unpublished: Count
    oldest_unpublished_at: datetime | None
    handlers: tuple[HandlerStatus, ...]

    @property
    def last_tick_age(self) -> timedelta | None:
        """Time since the last batch was taken; it grows while nothing is written."""
        return None if self.last_tick_at is None else self.at - self.last_tick_at

    @property
    def unpublished_age(self) -> timedelta | None:
        """How long the oldest unpublished event has been waiting; None when there is none."""
        return None if self.oldest_unpublished_at is None else self.at - self.oldest_unpublished_at


def status(database: Database, schema: str | None = None, *, look_at: int = LOOK_AT) -> Status:
    """How far everything is.

    `database` is a URL, an open psycopg connection or `Settings`; `schema` defaults to that of the settings, else to
    `outbox`. Counting stops at `look_at` rows each. Raises `SchemaError` when `outbox migrate` has not run, and
    `UnreachableError` when there is no server.

    >>> status("postgresql:///shop").unpublished
    Count(value=0, exact=True)
    """
    with opened(database, schema) as (connection, where), connection.cursor(row_factory=dict_row) as cursor:
        asked = {"most": look_at, "lock": lock_id("relay", where)}
        row = cursor.execute(statement("overview", where), asked).fetchone()
        assert row is not None
        handlers = tuple(_handler(found, look_at) for found in cursor.execute(statement("handlers", where), asked))
    return Status(
        schema=where,
        at=row["at"],
        position=_position(row["tick"], row["seq"]),
        last_tick_at=row["last_tick_at"],
        leader=_leader(row),
        events=_count(row["events"], row["events"], look_at),
        unpublished=_count(row["unpublished"], row["unpublished"], look_at),
        oldest_unpublished_at=row["oldest_unpublished_at"],
        handlers=handlers,
    )


def _count(value: int, looked: int, most: int) -> Count:
    return Count(value, looked < most)


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
    )


def _handler(row: Mapping[str, Any], most: int) -> HandlerStatus:
    done_to = _position(row["done_tick"], row["done_seq"])
    return HandlerStatus(
        name=row["name"],
        event_name=row["event_name"],
        state="attached" if row["attached"] else "new" if done_to is None else "detached",
        paused=row["paused"],
        done_to=done_to,
        fed=_position(row["fed_tick"], row["fed_seq"]),
        lag=_count(row["waiting"], row["lag_looked"], most),
        oldest_waiting_at=row["oldest"],
        done=_count(row["done"], row["done_looked"], most),
        retrying=_count(row["retrying"], row["retrying_looked"], most),
        dead=_count(row["dead"], row["dead_looked"], most),
        last_seen=row["last_seen"],
    )
