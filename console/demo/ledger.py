"""What the database says: the figures of the live view, and the books for the reconciliation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from importlib.resources import files
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, IsolationLevel
from psycopg.rows import class_row

from console.demo.load import Answers
from console.demo.reconciliation import Books, Effect

SCHEMA = "outbox"
"""The demo keeps to the default."""

Connection = AsyncConnection[tuple[Any, ...]]


@dataclass(frozen=True)
class Counts:
    """How far the database says things are. `lag` counts deliveries (an event for one of its handlers) without a final
    outcome."""

    committed: int
    done: int
    retrying: int
    dead: int
    lag: int


def _sql(name: str) -> bytes:
    return (files(__package__) / f"{name}.sql").read_text().replace("{schema}", SCHEMA).encode()


async def connect(url: str) -> Connection:
    """An autocommit connection for the functions below."""
    return await AsyncConnection.connect(url, autocommit=True, application_name="outbox demo")


async def counts(connection: Connection) -> Counts:
    """The figures of this moment."""
    async with connection.cursor(row_factory=class_row(Counts)) as cursor:
        await cursor.execute(_sql("counts"))
        found = await cursor.fetchone()
    assert found is not None
    return found


async def subscriptions(connection: Connection) -> dict[str, list[str]]:
    """The handlers of each event name."""
    handlers: dict[str, list[str]] = defaultdict(list)
    rows = await connection.execute(f"SELECT event_name, name FROM {SCHEMA}.handler ORDER BY 1, 2".encode())
    async for event_name, handler in rows:
        handlers[event_name].append(handler)
    return dict(handlers)


async def leader(connection: Connection) -> str | None:
    """Who leads, as the leading relay wrote it; None before the first."""
    row = await (await connection.execute(f"SELECT leader FROM {SCHEMA}.relay".encode())).fetchone()
    return row[0] if row else None


async def retried(connection: Connection) -> int:
    """Deliveries that took more than one attempt."""
    query = f"SELECT count(*) FROM {SCHEMA}.delivery WHERE attempts > 1".encode()
    row = await (await connection.execute(query)).fetchone()
    return int(row[0]) if row else 0


async def books(connection: Connection, answers: Answers, published: Collection[UUID]) -> Books:
    """Everything that has to agree: the database's part of it read in one snapshot."""
    await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    async with connection.transaction():
        rows = await (await connection.execute(f"SELECT id, name FROM {SCHEMA}.event".encode())).fetchall()
        effects = await (await connection.execute(_sql("effects"))).fetchall()
        orders = await (
            await connection.execute("SELECT id FROM orders WHERE id = ANY(%s)", [list(answers.refused.values())])
        ).fetchall()
        handlers = await subscriptions(connection)
    stayed = {order for (order,) in orders}
    return Books(
        events=dict(rows),
        handlers=handlers,
        effects=[Effect(event, handler) for event, handler in effects],
        accepted=answers.accepted,
        refused=answers.refused,
        survived=[event for event, order in answers.refused.items() if order in stayed],
        published=published,
    )
