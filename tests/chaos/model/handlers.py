"""The handlers that the simulated workers run. What an event's payload says is what becomes of it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from outbox.event import Event
from workers.app import App
from workers.context import Context
from workers.errors import Reject

HERE: ContextVar[Any] = ContextVar("the process whose code runs")

WORKS, FOLLOWS, FAILS_ONCE, IS_REJECTED = KINDS = range(4)


def application() -> App:
    """An app with a handler of each kind: for one event name two, for a name that only handlers add one."""
    app = App(backoff=0.5)

    @app.handler("said", concurrency=2, max_attempts=20)
    async def book(n: int, event: Event, session: AsyncSession, context: Context) -> None:
        await session.write("book", event)  # type: ignore[attr-defined]
        if n == FOLLOWS:
            await session.follow("followed")  # type: ignore[attr-defined]
        if n == FAILS_ONCE and context.attempt == 1:
            raise OSError("not now")
        if n == IS_REJECTED:
            raise Reject("never")

    @app.handler("said", concurrency=2, max_attempts=20)
    async def tell(n: int, event: Event, context: Context) -> None:
        await _effect("tell", event)
        if n == FAILS_ONCE and context.attempt == 1:
            raise OSError("not now")
        if n == IS_REJECTED:
            raise Reject("never")

    @app.handler("followed")
    async def file(event: Event, session: AsyncSession) -> None:
        await session.write("file", event)  # type: ignore[attr-defined]

    @app.handler("asked", at_most_once=True)
    async def ring(event: Event) -> None:
        await _effect("ring", event)

    return app


async def _effect(handler: str, event: Event) -> None:
    """Something outside of every database."""
    process = HERE.get()
    await process.call("nobody", lambda: process.world.happened.append((handler, str(event.id))))
