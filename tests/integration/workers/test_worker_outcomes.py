"""How an attempt may end: returned and raised outcomes, errors that are final, and what a dead letter keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import tenacity
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import workers
from outbox import admin

INSERT = text("INSERT INTO effects VALUES (:n)")


@pytest.fixture(autouse=True)
def _effects(outbox: Any) -> None:
    outbox.sql.execute("CREATE TABLE effects (n integer)")


def effects(outbox: Any) -> list[int]:
    return [row[0] for row in outbox.sql.execute("SELECT n FROM effects ORDER BY n").fetchall()]


def handlers(app: workers.App, kind: str, says: Callable[[int], Any], **options: Any) -> None:
    """A handler `h` of the event `e` that returns what `says` gives for `n`, in each of the ways to run one."""
    if kind == "async":

        @app.handler("e", name="h", **options)
        async def plain(n: int) -> Any:
            return says(n)

    elif kind == "thread":

        @app.handler("e", name="h", **options)
        def in_thread(n: int) -> Any:
            return says(n)

    elif kind == "transactional":

        @app.handler("e", name="h", **options)
        async def transactional(n: int, session: AsyncSession) -> Any:
            await session.execute(INSERT, {"n": n})
            return says(n)

    else:

        @app.handler("e", name="h", **options)
        def transactional_in_thread(n: int, session: Session) -> Any:
            session.execute(INSERT, {"n": n})
            return says(n)


KINDS = ["async", "thread", "transactional", "transactional in a thread"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_returned_dead_is_a_dead_letter_and_rolls_back(outbox: Any, work: Any, until: Any, kind: str) -> None:
    app = workers.App()
    handlers(app, kind, lambda n: workers.Dead("no such user") if n == 0 else workers.Done())
    outbox.attach("h", "e")

    async def scenario(_: workers.Worker) -> None:
        outbox.publish("e", {"n": 0}, {"n": 1})
        await until(lambda: outbox.count("dead") == 1 and outbox.count("done") == 1)

    work(app, scenario)
    assert outbox.one("SELECT error, attempts FROM outbox.dead_letter") == ("rejected: no such user", 1)
    assert effects(outbox) == ([1] if "transactional" in kind else [])


@pytest.mark.parametrize("kind", KINDS)
def test_a_returned_retry_costs_an_attempt_and_rolls_back(outbox: Any, work: Any, until: Any, kind: str) -> None:
    app, runs = workers.App(), list[int]()

    def says(n: int) -> Any:
        runs.append(n)
        return workers.Retry(delay=0, reason="the bank is closed") if len(runs) == 1 else None

    handlers(app, kind, says)
    outbox.attach("h", "e")

    async def scenario(_: workers.Worker) -> None:
        outbox.publish("e", {"n": 5})
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    assert runs == [5, 5]
    assert outbox.one("SELECT attempts FROM outbox.delivery") == 2
    assert effects(outbox) == ([5] if "transactional" in kind else [])


def test_a_returned_retry_waits_as_long_as_it_says_and_its_reason_is_kept(outbox: Any, work: Any, until: Any) -> None:
    app = workers.App(backoff=5000)
    handlers(app, "async", lambda n: workers.Retry(delay=[600, None][n], reason="the bank is closed"))
    outbox.attach("h", "e")

    async def scenario(_: workers.Worker) -> None:
        outbox.publish("e", {"n": 0}, {"n": 1})
        await until(lambda: outbox.count("retrying") == 2)

    work(app, scenario)
    rows = outbox.sql.execute(
        "SELECT (e.payload->>'n')::int, extract(epoch FROM d.due_at - d.updated_at), d.error"
        " FROM outbox.delivery d JOIN outbox.event e ON e.id = d.event_id ORDER BY 1"
    ).fetchall()
    assert [round(float(row[1])) for row in rows] == [600, 5000]
    assert {row[2] for row in rows} == {"RetryLater: the bank is closed"}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_else_is_returned_is_done(outbox: Any, work: Any, until: Any, kind: str) -> None:
    app = workers.App()
    handlers(app, kind, lambda n: [None, workers.Done(), False, {"a": 1}][n])
    outbox.attach("h", "e")

    async def scenario(_: workers.Worker) -> None:
        outbox.publish("e", *({"n": n} for n in range(4)))
        await until(lambda: outbox.count("done") == 4)

    work(app, scenario)
    assert effects(outbox) == ([0, 1, 2, 3] if "transactional" in kind else [])


def test_final_errors_are_dead_at_once_and_the_others_are_tried_again(outbox: Any, work: Any, until: Any) -> None:
    app = workers.App(backoff=3600)
    errors = [UnicodeError("final"), KeyError("again"), RuntimeError("neither")]

    def fail(n: int) -> None:
        raise errors[n]

    app.handler("e", name="dead_on", dead_on=ValueError)(fail)
    app.handler("e", name="retry_on", retry_on=(LookupError, OSError))(fail)
    for name in ("dead_on", "retry_on"):
        outbox.attach(name, "e")

    async def scenario(_: workers.Worker) -> None:
        outbox.publish("e", *({"n": n} for n in range(3)))
        await until(lambda: outbox.count("dead") + outbox.count("retrying") == 6)

    work(app, scenario)
    rows = outbox.sql.execute("SELECT handler, state, left(error, 12) FROM outbox.delivery ORDER BY 1, 3").fetchall()
    assert rows == [
        ("dead_on", "retrying", "KeyError: 'a"),
        ("dead_on", "retrying", "RuntimeError"),
        ("dead_on", "dead", "UnicodeError"),
        ("retry_on", "retrying", "KeyError: 'a"),
        ("retry_on", "dead", "RuntimeError"),
        ("retry_on", "dead", "UnicodeError"),
    ]


def test_a_payload_that_does_not_fit_is_tried_again_whatever_retry_on_says(outbox: Any, work: Any, until: Any) -> None:
    app = workers.App(retry_on=ConnectionError, backoff=3600)
    handlers(app, "async", lambda n: None)
    outbox.attach("h", "e")

    async def scenario(_: workers.Worker) -> None:
        outbox.publish("e", {"n": "many"})
        await until(lambda: outbox.count("retrying") == 1)

    work(app, scenario)
    assert "field 'n'" in outbox.one("SELECT error FROM outbox.delivery")


@pytest.mark.parametrize(
    ("backoff", "expected"),
    [([7, 70], [7, 70, 70]), (tenacity.wait_exponential(multiplier=10, max=30), [10, 20, 30]), (40, [40, 40, 40])],
)
def test_a_backoff_decides_when_an_event_is_due_again(
    outbox: Any, work: Any, until: Any, backoff: Any, expected: list[int]
) -> None:
    app = workers.App()

    @app.handler("e", backoff=backoff)
    async def h(n: int) -> None:
        raise ValueError(n)

    outbox.attach("h", "e")
    waits = []

    async def scenario(_: workers.Worker) -> None:
        outbox.publish("e", {"n": 1})
        for attempt in (1, 2, 3):
            await until(lambda n=attempt: outbox.one("SELECT attempts = %s FROM outbox.delivery", n))
            waits.append(outbox.one("SELECT extract(epoch FROM due_at - updated_at) FROM outbox.delivery"))
            outbox.sql.execute("UPDATE outbox.delivery SET due_at = now()")

    work(app, scenario)
    assert [round(float(wait)) for wait in waits] == expected


class Customer(BaseModel):
    email: int


ANN = {"email": "ann@private.example"}


@pytest.mark.parametrize("kind", ["async", "transactional"])
@pytest.mark.parametrize("retried", [False, True])
def test_a_dead_letter_keeps_type_message_and_traceback_without_secrets(
    outbox: Any, work: Any, until: Any, kind: str, retried: bool
) -> None:
    app = workers.App(backoff=0)

    def connect(n: int) -> None:
        try:
            Customer.model_validate(ANN)
        except ValueError as error:
            raise ConnectionError(f"no route to redis://shop:s3cret@cache/{n}") from error

    handlers(app, kind, connect, max_attempts=2 if retried else 1)
    outbox.attach("h", "e")

    async def scenario(_: workers.Worker) -> None:
        outbox.publish("e", {"n": 0})
        await until(lambda: outbox.count("dead") == 1)

    work(app, scenario)
    (letter,) = admin.dead_letters(outbox.sql)
    assert letter.error.startswith("ConnectionError: no route to redis://shop:***@cache/0 (at test_worker_outcomes.py:")
    assert letter.traceback is not None
    assert "ValidationError: Customer: email: Input should be a valid integer" in letter.traceback
    assert "which led to\nConnectionError: no route to redis://shop:***@cache/0\n" in letter.traceback
    assert "in connect\n" in letter.traceback
    assert "workers/execution.py" not in letter.traceback
    kept = json.dumps(outbox.sql.execute("SELECT row_to_json(d)::text FROM outbox.delivery d").fetchall())
    for secret in ("s3cret", "private"):
        assert secret not in letter.traceback + letter.error + kept


def test_what_a_dead_letter_keeps_of_an_error_is_bounded(outbox: Any, work: Any, until: Any) -> None:
    app = workers.App()

    def sink(depth: int) -> None:
        if depth:
            sink(depth - 1)
        raise ValueError("x" * 1_000_000)

    handlers(app, "async", lambda n: sink(200), max_attempts=1)
    outbox.attach("h", "e")

    async def scenario(_: workers.Worker) -> None:
        outbox.publish("e", {"n": 0})
        await until(lambda: outbox.count("dead") == 1)

    work(app, scenario)
    (letter,) = admin.dead_letters(outbox.sql)
    assert len(letter.error) <= 4000
    assert letter.traceback is not None
    assert len(letter.traceback) <= 12_000
    assert "in sink\n" in letter.traceback


@pytest.mark.parametrize("state", ["40001", "08006"])
def test_a_transaction_that_never_comes_through_is_tried_again_whatever_retry_on_says(
    outbox: Any, work: Any, until: Any, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr("workers.execution.REPEATS", 1)
    app = workers.App(retry_on=ConnectionResetError, backoff=3600)
    error = psycopg.errors.lookup(state)

    @app.handler("e")
    async def h(n: int, session: AsyncSession) -> None:
        raise error("it went wrong")

    outbox.attach("h", "e")

    async def scenario(_: workers.Worker) -> None:
        outbox.publish("e", {"n": 0})
        await until(lambda: outbox.count("retrying") == 1)

    work(app, scenario)
    assert "2 times" in outbox.one("SELECT error FROM outbox.delivery")
