"""A handler that does twice what it should do once is found out, and one that does not is let pass."""

from __future__ import annotations

from typing import Annotated, Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from outbox_testing import assert_idempotent, assert_idempotent_sync
from workers import App, Depends, Event, Reject
from workers.execution import Execution
from workers.job import Job

Db = psycopg.Connection[Any]


class Base(DeclarativeBase): ...


class Once(Base):
    __tablename__ = "once"
    n: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def check(finish: Any) -> Any:
    return finish(assert_idempotent, assert_idempotent_sync)


def test_a_plain_handler_that_repeats_its_effect_is_found_out(check: Any) -> None:
    app, sent = App(), list[int]()

    @app.handler("mail")
    async def send(user_id: int) -> None:
        sent.append(user_id)

    with pytest.raises(AssertionError) as failure:
        check(app, "send", {"user_id": 7}, state=lambda: sent)
    assert str(failure.value) == (
        "handler 'send' is not idempotent: the second run changed the state\n  before: [7]\n  after:  [7, 7]"
    )


def test_a_plain_handler_with_an_idempotency_key_passes(check: Any) -> None:
    app, sent = App(), dict[str, int]()

    @app.handler("mail")
    def send(user_id: int, event: Event) -> None:
        sent[str(event.id)] = user_id

    check(app, "send", {"user_id": 7}, state=lambda: sent)
    assert list(sent.values()) == [7]


@pytest.mark.parametrize("asynchronous", [True, False], ids=["AsyncSession", "Session"])
def test_effects_through_the_session_pass_and_are_there_once(
    outbox_database_url: str, db: Db, asynchronous: bool, check: Any
) -> None:
    app, calls = App(), list[int]()
    insert = text("INSERT INTO effect VALUES ('count', :n)")
    if asynchronous:

        @app.handler("ordered")
        async def count(n: int, session: AsyncSession) -> None:
            calls.append(n)
            await session.execute(insert, {"n": n})
    else:

        @app.handler("ordered")
        def count(n: int, session: Session) -> None:
            calls.append(n)
            session.execute(insert, {"n": n})

    def state() -> Any:
        return db.execute("SELECT * FROM effect").fetchall()

    check(app, "count", {"n": 1}, state=state, database=outbox_database_url)
    assert state() == [("count", 1)]
    assert len(calls) == 4, "two deaths before the commit, a run without an answer, and another one"


def test_a_handler_that_closes_its_session_is_found_out(outbox_database_url: str, db: Db, check: Any) -> None:
    app = App()

    @app.handler("ordered")
    async def count(n: int, session: AsyncSession) -> None:
        async with session:
            await session.execute(text("INSERT INTO effect VALUES ('count', :n)"), {"n": n})

    with pytest.raises(AssertionError, match=r"remove session\.close\(\), or `with session:`"):
        check(app, "count", {"n": 1}, state=list, database=outbox_database_url)
    assert db.execute("SELECT * FROM effect").fetchall() == []


def test_a_guard_inside_the_transaction_does_not_protect_what_is_done_outside(
    outbox_database_url: str, db: Db, check: Any
) -> None:
    """Two runs to the end look harmless: only a death before the commit shows it."""
    app, sent = App(), list[int]()

    @app.handler("welcome")
    async def greet(n: int, session: AsyncSession) -> None:
        if (await session.execute(text("SELECT FROM effect WHERE n = :n"), {"n": n})).first() is None:
            sent.append(n)
            await session.execute(text("INSERT INTO effect VALUES ('greet', :n)"), {"n": n})

    with pytest.raises(AssertionError, match="after a death before the COMMIT") as failure:
        check(app, "greet", {"n": 1}, state=lambda: sent, database=outbox_database_url)
    assert str(failure.value).endswith("\n  before: [1]\n  after:  [1, 1]")
    assert db.execute("SELECT * FROM effect").fetchall() == [], "what was broken off is rolled back"


def test_what_a_death_before_the_commit_rolls_back_was_flushed(outbox_database_url: str, db: Db) -> None:
    """So a constraint that only the flush meets is an error of the run, and not taken for a death."""
    app = App()
    db.execute("CREATE TABLE once (n int PRIMARY KEY)")
    db.execute("INSERT INTO once VALUES (1)")

    @app.handler("ordered")
    async def count(n: int, session: AsyncSession) -> None:
        session.add(Once(n=n))

    with pytest.raises(AssertionError, match=r"'count' did not work: .*duplicate key"):
        assert_idempotent_sync(app, "count", {"n": 1}, state=lambda: None, database=outbox_database_url)


def test_the_state_may_be_read_by_a_coroutine_function(check: Any) -> None:
    app, sent = App(), list[int]()

    @app.handler("mail")
    async def send() -> None:
        sent.append(1)

    async def state() -> int:
        return len(sent)

    with pytest.raises(AssertionError, match="before: 1\n  after:  2"):
        check(app, "send", state=state)


def test_a_handler_that_fails_is_not_taken_for_an_idempotent_one(check: Any) -> None:
    app = App()

    @app.handler("mail")
    async def send() -> None:
        raise Reject("no such user")

    with pytest.raises(AssertionError, match=r"'send' did not work: Dead\(.*no such user"):
        check(app, "send", state=lambda: None)


def test_a_handler_whose_second_run_fails_is_named() -> None:
    app, sent = App(), list[int]()

    @app.handler("mail")
    async def send() -> None:
        if sent:
            raise ValueError("sent already")
        sent.append(1)

    with pytest.raises(AssertionError, match=r"'send' did not work when the same event came again: .*sent already"):
        assert_idempotent_sync(app, "send", state=lambda: sent)


class Books:
    def __init__(self, session: AsyncSession, n: int) -> None:
        self.session, self.n = session, n


async def _book(books: Annotated[Books, Depends(Books)]) -> None:
    await books.session.execute(text("INSERT INTO effect VALUES ('book', :n)"), {"n": books.n})


def test_a_session_that_only_a_dependency_asks_for_is_the_same_transaction(
    outbox_database_url: str, db: Db, check: Any
) -> None:
    app = App()
    app.handler("ordered", name="book")(_book)
    check(
        app, "book", {"n": 3}, database=outbox_database_url, state=lambda: db.execute("SELECT n FROM effect").fetchall()
    )
    assert db.execute("SELECT n FROM effect").fetchall() == [(3,)]


@pytest.mark.parametrize("asynchronous", [True, False], ids=["AsyncSession", "Session"])
def test_a_batch_handler_is_broken_off_and_repeated_like_any_other(
    outbox_database_url: str, db: Db, asynchronous: bool, check: Any
) -> None:
    app, sent = App(), list[int]()
    insert = text("INSERT INTO effect VALUES ('all', :n)")
    if asynchronous:

        @app.handler("ordered", batch=100, batch_wait=60)
        async def count(events: list[Event], session: AsyncSession) -> None:
            await session.execute(insert, [event.payload for event in events])
    else:

        @app.handler("ordered", batch=100, batch_wait=60)
        def count(events: list[Event], session: Session) -> None:
            session.execute(insert, [event.payload for event in events])

    @app.handler("ordered", batch=100, batch_wait=60)
    async def tell(events: list[Event], session: AsyncSession) -> None:
        sent.extend(event.payload["n"] for event in events)

    def state() -> Any:
        return db.execute("SELECT n FROM effect").fetchall()

    check(app, "count", {"n": 1}, state=state, database=outbox_database_url)
    assert state() == [(1,)]
    with pytest.raises(AssertionError, match="after a death before the COMMIT"):
        check(app, "tell", {"n": 1}, state=lambda: sent, database=outbox_database_url)


def test_a_commit_without_an_answer_is_found_and_not_repeated(
    outbox_database_url: str, db: Db, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that did not look would run the handler once more in place."""
    app, calls = App(), list[int]()

    @app.handler("ordered")
    async def count(n: int, session: AsyncSession) -> None:
        calls.append(n)
        await session.execute(text("INSERT INTO effect VALUES ('count', :n)"), {"n": n})

    def state() -> int:
        return len(calls)

    seen: list[int] = []

    async def recorded(self: Execution, job: Job) -> bool:
        seen.append(len(calls))
        return await real(self, job)

    real = Execution._recorded
    monkeypatch.setattr(Execution, "_recorded", recorded)
    with pytest.raises(AssertionError, match="repeated what it does outside"):
        check(app, "count", {"n": 1}, state=state, database=outbox_database_url)
    check(app, "count", {"n": 2}, state=lambda: None, database=outbox_database_url)
    assert seen == [5], "looked up after the run whose answer was lost, which was the third of its event"
    assert len(calls) == 6
    assert db.execute("SELECT n FROM effect").fetchall() == [(2,)]
