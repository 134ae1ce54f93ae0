"""A handler run on one event in the test's process ends as it would in a worker."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

import outbox
from outbox.settings import Settings
from outbox_testing import assert_idempotent_sync, run, run_sync
from workers import App, Backoff, Context, Event, Reject, RetryLater, Snooze
from workers.errors import SupersededError
from workers.outcome import Dead, Done, Retry, Snoozed

Db = psycopg.Connection[Any]


def rows(db: Db, query: str) -> list[Any]:
    return db.execute(query.encode()).fetchall()


def test_a_plain_handler_gets_what_a_worker_gives_it_and_needs_no_server(finish: Any) -> None:
    app = App(prefix="shop")
    seen: list[Any] = []

    @app.handler("mail", max_attempts=3)
    async def send(user_id: int, event: Event, context: Context, note: str = "none") -> None:
        seen.append((user_id, note, event.name, event.payload, context.attempt, context.max_attempts, context.handler))
        assert isinstance(event.id, UUID)
        assert event.created_at is not None

    assert finish(run, run_sync)(app, "send", {"user_id": 7}, attempt=2) == Done()
    assert seen == [(7, "none", "mail", {"user_id": 7}, 2, 3, "shop.send")]


def test_a_def_handler_runs_in_a_thread(finish: Any) -> None:
    app = App()
    threads: list[threading.Thread] = []

    @app.handler("mail")
    def send() -> None:
        threads.append(threading.current_thread())

    assert finish(run, run_sync)(app, "send") == Done()
    assert threads[0] is not threading.current_thread()


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RetryLater(60, "closed"), Retry),
        (Snooze(5), Snoozed),
        (Reject("no such user"), Dead),
        (ValueError("no"), Retry),
    ],
)
def test_what_a_handler_raises_is_judged(error: Exception, outcome: type) -> None:
    app = App()

    @app.handler("mail")
    async def send() -> None:
        raise error

    assert isinstance(run_sync(app, "send"), outcome)


def test_the_backoff_and_the_last_attempt_count() -> None:
    app = App()

    @app.handler("mail", max_attempts=3, backoff=Backoff(initial=2, jitter=0))
    async def send() -> None:
        raise ValueError("no")

    first, last = run_sync(app, "send"), run_sync(app, "send", attempt=3)
    assert isinstance(first, Retry)
    assert first.delay == 2
    assert "ValueError: no" in first.reason
    assert isinstance(last, Dead)


def test_a_payload_that_does_not_fit_names_the_field() -> None:
    app = App()

    @app.handler("mail")
    async def send(user_id: int) -> None: ...

    outcome = run_sync(app, "send", {"user_id": "seven"})
    assert isinstance(outcome, Retry)
    assert "'user_id'" in outcome.reason
    with pytest.raises(outbox.PayloadError):
        run_sync(app, "send", {"user_id": object()})


def test_what_a_handler_returns_is_its_outcome() -> None:
    app = App()

    @app.handler("mail")
    async def send(after: int) -> Done | Retry | Dead:
        return Retry(delay=after, reason="closed") if after else Dead("no such user")

    outcome = run_sync(app, "send", {"after": 60})
    assert isinstance(outcome, Retry)
    assert (outcome.delay, "closed" in outcome.reason) == (60, True)
    assert isinstance(run_sync(app, "send", {"after": 0}), Dead)


def test_middleware_is_around_the_run(finish: Any) -> None:
    app, seen = App(), list[Any]()

    @app.middleware
    async def note(event: Event, next: Any) -> Any:
        outcome = await next(event)
        seen.append((event.payload, outcome))
        return outcome

    @app.handler("mail")
    async def send(n: int) -> None: ...

    assert finish(run, run_sync)(app, "send", {"n": 1}) == Done()
    assert seen == [({"n": 1}, Done())]


def test_a_handler_that_is_never_run_again_is_dead_when_it_fails(finish: Any) -> None:
    app = App()

    @app.handler("mail", at_most_once=True)
    async def charge() -> None:
        raise ValueError("declined")

    assert isinstance(finish(run, run_sync)(app, "charge"), Dead)
    with pytest.raises(outbox.ConfigurationError, match="'charge' has at_most_once=True"):
        assert_idempotent_sync(app, "charge", state=lambda: None)


def test_a_batch_handler_gets_a_batch_of_one_at_once(finish: Any) -> None:
    app, seen = App(), list[Any]()

    @app.handler("mail", batch=100, batch_wait=60)
    async def send(events: list[Event]) -> None:
        seen.append([event.payload for event in events])

    assert finish(run, run_sync)(app, "send", {"n": 1}) == Done()
    assert seen == [[{"n": 1}]]


def test_a_batch_whose_event_has_an_outcome_is_superseded(outbox_database_url: str, db: Db) -> None:
    app = App()

    @app.handler("ordered", batch=100, batch_wait=60)
    def count(events: list[Event], session: Session) -> None:
        session.execute(text("INSERT INTO effect VALUES ('count', 1)"))

    event = Event(uuid7(), "ordered", "{}")
    assert run_sync(app, "count", event, database=outbox_database_url) == Done()
    with pytest.raises(SupersededError):
        run_sync(app, "count", event, database=outbox_database_url)
    assert rows(db, "SELECT * FROM effect") == [("count", 1)]


def test_a_handler_in_a_process_runs_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finish: Any) -> None:
    (tmp_path / "heavy_tasks.py").write_text(
        "import os, pathlib\nfrom workers import App\napp = App()\n"
        "@app.handler('drawn', pool='process')\n"
        "def draw(path: str) -> None:\n    pathlib.Path(path).write_text(str(os.getpid()))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    app = importlib.import_module("heavy_tasks").app
    assert finish(run, run_sync)(app, "draw", {"path": str(tmp_path / "pid")}) == Done()
    assert int((tmp_path / "pid").read_text()) != os.getpid()
    monkeypatch.delitem(sys.modules, "heavy_tasks")


@pytest.mark.parametrize("kind", ["plain", "thread", "transactional", "batch", "transactional batch"])
def test_what_would_be_kept_of_a_returned_value_is_in_the_outcome(outbox_database_url: str, kind: str) -> None:
    app = App()
    with psycopg.connect(outbox_database_url, autocommit=True) as db:
        if kind == "plain":

            @app.handler("e", name="h")
            async def plain(n: int) -> Any:
                return ("sent", n) if n else {n}

        elif kind == "thread":

            @app.handler("e", name="h")
            def in_thread(n: int) -> Any:
                return ("sent", n) if n else {n}

        elif kind == "transactional":

            @app.handler("e", name="h")
            async def transactional(n: int, session: AsyncSession) -> Any:
                return ("sent", n) if n else {n}

        elif kind == "batch":

            @app.handler("e", name="h", batch=10)
            async def batch(events: list[Event]) -> Any:
                return [Done(("sent", each.payload["n"]) if each.payload["n"] else {0}) for each in events]

        else:

            @app.handler("e", name="h", batch=10)
            def transactional_batch(events: list[Event], session: Session) -> Any:
                return [Done(("sent", each.payload["n"]) if each.payload["n"] else {0}) for each in events]

        assert run_sync(app, "h", {"n": 1}, database=outbox_database_url) == Done(result=["sent", 1])
        assert run_sync(app, "h", {"n": 0}, database=outbox_database_url) == Done()
        rows = db.execute("SELECT result FROM outbox.delivery ORDER BY result::text").fetchall()
        assert rows == ([(["sent", 1],), (None,)] if "transactional" in kind else [])


def test_a_run_that_takes_too_long_is_interrupted() -> None:
    app = App()

    @app.handler("mail", timeout=0.05)
    async def send() -> None:
        await asyncio.sleep(60)

    @app.handler("mail", timeout=0.05)
    def send_in_thread() -> None:
        while True:
            time.sleep(0.001)

    for name in ("send", "send_in_thread"):
        outcome = run_sync(app, name)
        assert isinstance(outcome, Retry)
        assert "timed out after 0.05 s" in outcome.reason


def test_a_run_is_interrupted_when_the_test_is() -> None:
    app = App()
    states: list[str] = []

    @app.handler("mail")
    async def send() -> None:
        states.append("began")
        try:
            await asyncio.sleep(60)
        finally:
            states.append("ended")

    async def main() -> None:
        running = asyncio.create_task(run(app, "send"))
        while not states:
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert states == ["began", "ended"]

    asyncio.run(main())


def test_a_handler_is_found_by_its_name_or_by_an_event_that_has_no_other() -> None:
    app = App()

    @app.handler("signed_up")
    async def send() -> None: ...

    assert run_sync(app, "signed_up") == Done()

    @app.handler("signed_up")
    async def award() -> None: ...

    with pytest.raises(outbox.ConfigurationError, match="has the handlers 'send' and 'award': say which one"):
        run_sync(app, "signed_up")
    with pytest.raises(outbox.ConfigurationError, match=r"no handler 'sned'.* it has award, send"):
        run_sync(app, "sned")


def transactional(asynchronous: bool) -> App:
    app = App()
    if asynchronous:

        @app.handler("ordered")
        async def bill(n: int, session: AsyncSession, event: Event) -> None:
            await session.execute(text("INSERT INTO effect VALUES ('bill', :n)"), {"n": n})
            outbox.add(session, "billed", n=n)
            if n < 0:
                raise ValueError("negative")
    else:

        @app.handler("ordered")
        def bill(n: int, session: Session, event: Event) -> None:
            session.execute(text("INSERT INTO effect VALUES ('bill', :n)"), {"n": n})
            outbox.add(session, "billed", n=n)
            if n < 0:
                raise ValueError("negative")

    return app


@pytest.mark.parametrize("asynchronous", [True, False], ids=["AsyncSession", "Session"])
@pytest.mark.parametrize("kind", ["settings", "url"])
def test_effects_follow_up_events_and_the_delivery_commit_together(
    outbox_settings: Settings, outbox_database_url: str, db: Db, asynchronous: bool, kind: str, finish: Any
) -> None:
    app = transactional(asynchronous)
    database = outbox_settings if kind == "settings" else outbox_database_url
    assert finish(run, run_sync)(app, "bill", {"n": 1}, database=database) == Done()
    assert rows(db, "SELECT * FROM effect") == [("bill", 1)]
    assert rows(db, "SELECT name, payload FROM outbox.event") == [("billed", {"n": 1})]
    assert rows(db, "SELECT handler, state, attempts FROM outbox.delivery") == [("bill", "done", 1)]
    assert isinstance(finish(run, run_sync)(app, "bill", {"n": -1}, database=database), Retry)
    for table, count in (("effect", 1), ("outbox.event", 1), ("outbox.delivery", 1)):
        assert rows(db, f"SELECT count(*) FROM {table}") == [(count,)]


def test_the_same_event_again_is_superseded_and_rolled_back(outbox_database_url: str, db: Db) -> None:
    app = transactional(True)

    async def main() -> None:
        engine = create_async_engine(outbox_database_url.replace("postgresql:", "postgresql+psycopg:", 1))
        async with AsyncSession(engine) as session:
            event = outbox.add(session, "ordered", n=1)
            stored = await outbox.testing.assert_added(session, "ordered")
        await engine.dispose()
        await run(app, "bill", event, database=outbox_database_url)
        for again in (event, stored):
            assert again.id == event.id
            with pytest.raises(SupersededError):
                await run(app, "bill", again, database=outbox_database_url)

    asyncio.run(main())
    assert rows(db, "SELECT * FROM effect") == [("bill", 1)]


def test_a_transactional_handler_without_a_database_is_told_what_to_pass(
    outbox_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOX_DATABASE_URL", outbox_database_url)
    with pytest.raises(outbox.ConfigurationError, match="'bill' is transactional: pass database="):
        run_sync(transactional(True), "bill", {"n": 1})


class Bank:
    def __init__(self) -> None:
        self.charged: list[int] = []


def with_bank(bank: Bank, states: list[str]) -> App:
    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[Bank]:
        states.append("entered")
        yield bank
        states.append("left")

    app = App(lifespan=lifespan)

    @app.handler("ordered")
    async def charge(cents: int, bank: Bank) -> None:
        assert states[-1:] != ["left"]
        bank.charged.append(cents)

    return app


def test_a_handler_is_given_what_the_apps_lifespan_gives(finish: Any) -> None:
    bank, states = Bank(), list[str]()
    app = with_bank(bank, states)
    assert finish(run, run_sync)(app, "charge", {"cents": 5}) == Done()
    assert (bank.charged, states) == ([5], ["entered", "left"])


def test_resources_of_the_tests_own_stand_in_for_the_lifespans(finish: Any) -> None:
    states: list[str] = []
    app, mine = with_bank(Bank(), states), Bank()
    assert finish(run, run_sync)(app, "charge", {"cents": 5}, resources={Bank: mine}) == Done()
    assert (mine.charged, states) == ([5], [])
    with pytest.raises(outbox.ConfigurationError, match=r"asks for Bank \(parameter 'bank'\): resources= has none"):
        run_sync(app, "charge", {"cents": 5}, resources={})
    with pytest.raises(AssertionError, match=r"before: \[5, 5\]\n  after:  \[5, 5, 5\]"):
        assert_idempotent_sync(app, "charge", {"cents": 5}, state=lambda: mine.charged, resources={Bank: mine})


def test_a_lifespan_that_fails_fails_the_test() -> None:
    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[Bank]:
        yield Bank()
        raise LookupError("not closed")

    app = App(lifespan=lifespan)

    @app.handler("ordered")
    async def charge(bank: Bank) -> None: ...

    with pytest.raises(LookupError, match="not closed"):
        run_sync(app, "charge")
