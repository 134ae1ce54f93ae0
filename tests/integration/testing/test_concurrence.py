"""One event at two workers at once: what is written through the session is there once, and races are found out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from outbox.errors import ConfigurationError
from outbox_testing import run_twice, run_twice_sync
from workers import App, Done, Event, Reject

INSERT = text("INSERT INTO effect VALUES ('count', :n)")


@pytest.fixture
def twice(finish: Any) -> Any:
    return finish(run_twice, run_twice_sync)


@pytest.mark.parametrize("asynchronous", [True, False], ids=["AsyncSession", "Session"])
def test_of_two_transactions_one_is_rolled_back(
    outbox_database_url: str, db: Any, asynchronous: bool, twice: Any
) -> None:
    app, calls = App(), list[int]()
    if asynchronous:

        @app.handler("ordered")
        async def count(n: int, session: AsyncSession) -> None:
            calls.append(n)
            await session.execute(INSERT, {"n": n})
    else:

        @app.handler("ordered")
        def count(n: int, session: Session) -> None:
            calls.append(n)
            session.execute(INSERT, {"n": n})

    outcomes = twice(app, "count", {"n": 1}, database=outbox_database_url)
    assert sorted(outcomes, key=str) == [Done(), None]
    assert calls == [1, 1]
    assert db.execute("SELECT * FROM effect").fetchall() == [("count", 1)]


def test_a_batch_of_one_is_no_exception(outbox_database_url: str, db: Any, twice: Any) -> None:
    app = App()

    @app.handler("ordered", batch=100)
    async def count(events: list[Event], session: AsyncSession) -> None:
        await session.execute(INSERT, [event.payload for event in events])

    assert twice(app, "count", {"n": 1}, database=outbox_database_url).count(None) == 1
    assert db.execute("SELECT * FROM effect").fetchall() == [("count", 1)]


def test_both_runs_are_under_way_before_either_ends(twice: Any) -> None:
    """So who looks first, and then acts, is found out."""
    app, sent, both = App(), list[str](), list[Event]()

    @app.handler("mail")
    async def send(event: Event) -> None:
        if str(event.id) in sent:
            return
        both.append(event)
        while len(both) < 2:
            await asyncio.sleep(0)
        sent.append(str(event.id))

    assert twice(app, "send") == (Done(), Done())
    assert len(sent) == 2
    assert both[0].id == both[1].id


def test_failures_are_given_as_they_would_be_judged(twice: Any) -> None:
    app = App()

    @app.handler("mail")
    async def send() -> None:
        raise Reject("no such user")

    assert [type(outcome).__name__ for outcome in twice(app, "send")] == ["Dead", "Dead"]


def test_a_handler_that_is_never_run_by_two_is_refused(twice: Any) -> None:
    app = App()

    @app.handler("mail", at_most_once=True)
    async def send() -> None: ...

    with pytest.raises(ConfigurationError, match="at_most_once"):
        twice(app, "send")
