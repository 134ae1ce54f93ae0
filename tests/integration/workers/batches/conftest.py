"""A batch handler of each kind, and what came of its events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import workers
from workers import Event

INSERT = text("INSERT INTO effects VALUES (:n)")


@pytest.fixture(params=["async plain", "sync plain", "async transactional", "sync transactional"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Batches:
    """Declares handlers whose events carry a number, and reads what became of these."""

    def __init__(self, outbox: Any) -> None:
        # Without a unique key, so that a second application shows.
        outbox.sql.execute("CREATE TABLE effects (n integer)")
        self._sql = outbox.sql

    def declare(self, app: workers.App, kind: str, body: Callable[[list[Event]], Any], **options: Any) -> None:
        """A batch handler `h` of `e`: if it is transactional it inserts each event's number, then the body is run."""

        def rows(events: list[Event]) -> list[dict[str, int]]:
            return [{"n": event.payload["n"]} for event in events]

        if kind == "async plain":

            @app.handler("e", name="h", **options)
            async def _(events: list[Event]) -> Any:
                return body(events)

        elif kind == "sync plain":

            @app.handler("e", name="h", **options)
            def _(events: list[Event]) -> Any:
                return body(events)

        elif kind == "async transactional":

            @app.handler("e", name="h", **options)
            async def _(events: list[Event], session: AsyncSession) -> Any:
                await session.execute(INSERT, rows(events))
                return body(events)

        else:

            @app.handler("e", name="h", **options)
            def _(events: list[Event], session: Session) -> Any:
                session.execute(INSERT, rows(events))
                return body(events)

    def effects(self) -> list[int]:
        """The numbers that transactional handlers wrote."""
        return [row[0] for row in self._sql.execute("SELECT n FROM effects ORDER BY n").fetchall()]

    def by_number(self) -> dict[int, tuple[str, int]]:
        """State and attempts of each event's delivery."""
        return {
            n: (state, attempts)
            for n, state, attempts in self._sql.execute(
                "SELECT (e.payload->>'n')::integer, d.state, d.attempts FROM outbox.delivery AS d"
                " JOIN outbox.event AS e ON e.id = d.event_id"
            ).fetchall()
        }


@pytest.fixture(autouse=True)
def batches(outbox: Any) -> Batches:
    return Batches(outbox)
