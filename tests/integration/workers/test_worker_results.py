"""What handlers return is kept with their deliveries, whatever kind they are, and costs the others nothing."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy import event as hooks
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

import workers
from workers.database import Database

SOON = workers.Backoff(initial=0.01, jitter=0)
INSERT = text("INSERT INTO effects VALUES (:n)")

NASTY = {
    "percent": "100% %s %(ids)s %%",
    "quotes": "it's \"so\" \\ E'\\'' $$ $1 :name {0}",
    "end": "'; COMMIT; DROP TABLE outbox.event; --",
    "nul": "a\0b",
    "words": "grün 😀 \x7f\u2028",
    "numbers": [1e16, -0.0, 10**30, 0.1],
    "none": None,
}
KINDS = ["async", "thread", "process", "transactional", "transactional in a thread"]

CHILD = """
import json, workers
app = workers.App()

@app.handler("e", name="h", pool="process", backoff=workers.Backoff(initial=0.01, jitter=0))
def h(says: str, fails: bool, context: workers.Context):
    if fails and context.attempt == 1:
        raise OSError("not yet")
    return {"an object": object()} if says == "unfit" else json.loads(says)
"""


@pytest.fixture(autouse=True)
def _effects(outbox: Any) -> None:
    outbox.sql.execute("CREATE TABLE effects (n integer)")


@pytest.fixture
def app_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., workers.App]:
    """An app with a handler `h` of `e`, of some kind, that returns the JSON which the event says, after one failure if
    the event says so."""

    def make(kind: str, **options: Any) -> workers.App:
        if kind == "process":
            (tmp_path / "tasks_with_results.py").write_text(CHILD)
            monkeypatch.syspath_prepend(tmp_path)
            monkeypatch.delitem(sys.modules, "tasks_with_results", raising=False)
            found: workers.App = importlib.import_module("tasks_with_results").app
            return found
        app = workers.App(backoff=None if options.get("at_most_once") else SOON)

        def body(says: str, fails: bool, context: workers.Context) -> Any:
            if fails and context.attempt == 1:
                raise OSError("not yet")
            return {"an object": object()} if says == "unfit" else json.loads(says)

        if kind == "async":

            @app.handler("e", name="h", **options)
            async def plain(says: str, fails: bool, context: workers.Context) -> Any:
                return body(says, fails, context)

        elif kind == "thread":

            @app.handler("e", name="h", **options)
            def in_thread(says: str, fails: bool, context: workers.Context) -> Any:
                return body(says, fails, context)

        elif kind == "transactional":

            @app.handler("e", name="h", **options)
            async def transactional(says: str, fails: bool, context: workers.Context, session: AsyncSession) -> Any:
                await session.execute(INSERT, {"n": 1})
                return body(says, fails, context)

        else:

            @app.handler("e", name="h", **options)
            def transactional_in_thread(says: str, fails: bool, context: workers.Context, session: Session) -> Any:
                session.execute(INSERT, {"n": 1})
                return body(says, fails, context)

        return app

    return make


def says(value: Any, *, fails: bool = False) -> dict[str, Any]:
    return {"says": json.dumps(value), "fails": fails}


def kept(outbox: Any) -> dict[str, Any]:
    """The results by event."""
    return dict(outbox.sql.execute("SELECT event_id::text, result FROM outbox.delivery").fetchall())


@pytest.mark.oldest
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_handler_returns_is_kept_of_first_attempts_and_of_retries(
    outbox: Any, work: Any, until: Any, app_with: Any, kind: str
) -> None:
    app = app_with(kind)
    outbox.attach("h", "e")
    values = [NASTY, "text with a ' and a %", [], False, None]
    wanted: dict[str, Any] = {}

    async def scenario(worker: workers.Worker) -> None:
        for fails in (False, True):
            ids = outbox.publish("e", *(says(value, fails=fails) for value in values))
            wanted.update(zip(ids, values, strict=True))
        await until(lambda: outbox.count("done") == len(wanted) and outbox.pending("e", "h") == 0)

    with capture_logs() as logs:
        work(app, scenario)
    assert kept(outbox) == wanted
    assert outbox.one("SELECT count(*) FROM effects") == (len(wanted) if "transactional" in kind else 0)
    assert outbox.one("SELECT count(*) FROM outbox.delivery WHERE attempts = 2") == len(values)
    assert "result.not_kept" not in {each["event"] for each in logs}


@pytest.mark.parametrize("kind", ["async", "thread"])
def test_a_run_that_must_not_be_repeated_keeps_its_result(
    outbox: Any, work: Any, until: Any, app_with: Any, kind: str
) -> None:
    app = app_with(kind, at_most_once=True)
    outbox.attach("h", "e")
    wanted: dict[str, Any] = {}

    async def scenario(worker: workers.Worker) -> None:
        wanted.update(zip(outbox.publish("e", says(NASTY), says(None)), [NASTY, None], strict=True))
        await until(lambda: outbox.count("done") == 2)

    work(app, scenario)
    assert kept(outbox) == wanted
    assert outbox.one("SELECT count(*) FROM outbox.dead_letter") == 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_kept_fails_no_event_and_is_told_once_without_the_value(
    outbox: Any, work: Any, until: Any, app_with: Any, kind: str
) -> None:
    app = app_with(kind)
    outbox.attach("h", "e")
    large = "s3cret" * 2000

    async def scenario(worker: workers.Worker) -> None:
        outbox.publish("e", {"says": "unfit", "fails": False})
        await until(lambda: outbox.count("done") == 1)
        outbox.publish("e", says(large), {"says": "unfit", "fails": True}, says(7))
        await until(lambda: outbox.count("done") == 4)

    with capture_logs() as logs:
        work(app, scenario)
    assert [result for result in kept(outbox).values() if result is not None] == [7]
    (told,) = [each for each in logs if each["event"] == "result.not_kept"]
    wanted = {"log_level": "warning", "handler": "h", "type": "dict", "why": "it is not JSON"}
    assert {name: told[name] for name in wanted} == wanted
    assert "s3cret" not in str(logs)


def test_the_size_of_what_is_not_kept_is_told(outbox: Any, work: Any, until: Any, app_with: Any) -> None:
    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        outbox.publish("e", says(["s3cret"] * 2000))
        await until(lambda: outbox.count("done") == 1)

    with capture_logs() as logs:
        work(app_with("async"), scenario)
    (told,) = [each for each in logs if each["event"] == "result.not_kept"]
    assert (told["type"], told["why"]) == ("list", "its JSON is larger than 8,192 bytes")


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, frozenset[str]]]]:
    """Every statement with its parameters that workers, and their handlers' sessions, send meanwhile."""
    sent: list[tuple[str, frozenset[str]]] = []
    once = Database.once

    async def watched(self: Database, statement: str, params: Any) -> Any:
        sent.append((statement, frozenset(params)))
        return await once(self, statement, params)

    def of_a_session(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append((statement, frozenset(parameters or ())))

    def past_it(execute: Any) -> Any:
        def wrapper(connection: Any, statement: Any, *arguments: Any, **options: Any) -> Any:
            sent.append((str(statement), frozenset()))
            return execute(connection, statement, *arguments, **options)

        return wrapper

    for kind in (psycopg.Connection, psycopg.AsyncConnection):
        monkeypatch.setattr(kind, "execute", past_it(kind.execute))
    monkeypatch.setattr(Database, "once", watched)
    hooks.listen(Engine, "before_cursor_execute", of_a_session)
    yield sent
    hooks.remove(Engine, "before_cursor_execute", of_a_session)


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("kind", ["async", "thread", "transactional", "transactional in a thread"])
def test_a_handler_that_returns_nothing_sends_nothing_more(
    outbox: Any, work: Any, until: Any, app_with: Any, statements: Any, kind: str, batch: int | None
) -> None:
    app = app_with(kind) if batch is None else batch_app(kind, lambda events: None, batch)
    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        outbox.publish("e", says(None), says(None), says(None, fails=batch is None))
        await until(lambda: outbox.count("done") == 3 and outbox.pending("e", "h") == 0)

    work(app, scenario)
    sent = [statement for statement, _ in statements if "'done'" in statement]
    assert all(kind in str(sent) for kind in ("INSERT", "UPDATE")[: 1 + (batch is None)])
    assert [each for each in statements if "result" in each[0] or "results" in each[1]] == []


# Batches -----------------------------------------------------------------------------------------------------------


def batch_app(kind: str, body: Callable[[list[workers.Event]], Any], batch: int, backoff: Any = SOON) -> workers.App:
    """A batch handler `h` of `e` that returns what `body` gives for its events."""
    app = workers.App(backoff=backoff)
    options: dict[str, Any] = {"name": "h", "batch": batch, "batch_wait": 0.2}
    if kind == "async":

        @app.handler("e", **options)
        async def plain(events: list[workers.Event]) -> Any:
            return body(events)

    elif kind == "thread":

        @app.handler("e", **options)
        def in_thread(events: list[workers.Event]) -> Any:
            return body(events)

    elif kind == "transactional":

        @app.handler("e", **options)
        async def transactional(events: list[workers.Event], session: AsyncSession) -> Any:
            await session.execute(INSERT, [{"n": 1} for _ in events])
            return body(events)

    else:

        @app.handler("e", **options)
        def transactional_in_thread(events: list[workers.Event], session: Session) -> Any:
            session.execute(INSERT, [{"n": 1} for _ in events])
            return body(events)

    return app


@pytest.mark.parametrize("kind", ["async", "thread", "transactional", "transactional in a thread"])
def test_each_event_of_a_batch_has_a_result_of_its_own(outbox: Any, work: Any, until: Any, kind: str) -> None:
    failed: set[UUID] = set()

    def body(events: list[workers.Event]) -> Any:
        answers: list[Any] = []
        for event in events:
            if event.payload["fails"] and event.id not in failed:
                failed.add(event.id)
                answers.append(workers.Retry(0, "not yet"))
            else:
                value = json.loads(event.payload["says"])
                answers.append(None if value is None else workers.Done(result=value))
        return answers

    outbox.attach("h", "e")
    values = [NASTY, None, "text with a ' and a %", 7]
    wanted: dict[str, Any] = {}

    async def scenario(worker: workers.Worker) -> None:
        for fails in (False, True):
            ids = outbox.publish("e", *(says(value, fails=fails) for value in values))
            wanted.update(zip(ids, values, strict=True))
        await until(lambda: outbox.count("done") == len(wanted) and outbox.pending("e", "h") == 0)

    work(batch_app(kind, body, 100), scenario)
    assert kept(outbox) == wanted
    assert outbox.one("SELECT max(attempts) FROM outbox.delivery") == 2


def test_an_outcome_for_all_events_of_a_batch_gives_all_of_them_its_result(outbox: Any, work: Any, until: Any) -> None:
    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        outbox.publish("e", {}, {})
        await until(lambda: outbox.count("done") == 2)

    work(batch_app("transactional", lambda events: workers.Done(result="sent"), 2), scenario)
    assert list(kept(outbox).values()) == ["sent", "sent"]


def test_plain_values_for_the_events_of_a_batch_are_no_results(outbox: Any, work: Any, until: Any) -> None:
    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        outbox.publish("e", {}, {})
        await until(lambda: outbox.count("retrying") == 2)

    work(batch_app("async", lambda events: [{"pages": 3} for _ in events], 2, backoff=3600), scenario)
    assert set(kept(outbox).values()) == {None}
    assert "it holds a dict" in outbox.one("SELECT min(error) FROM outbox.delivery")
