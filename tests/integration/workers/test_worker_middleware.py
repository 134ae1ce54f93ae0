"""Middleware in real runs: what it sees, what it may change, and what is committed already."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import pytest
import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

import workers
from workers.execution import Execution
from workers.outcome import Snoozed

SOON = workers.Backoff(initial=0.01, jitter=0)
INSERT = text("INSERT INTO effect VALUES (:n)")


@pytest.fixture(autouse=True)
def _effects(outbox: Any) -> None:
    outbox.sql.execute("CREATE TABLE effect (n int)")


def effects(outbox: Any) -> list[int]:
    return [row[0] for row in outbox.sql.execute("SELECT n FROM effect ORDER BY n")]


def kinds(app: workers.App, body: Any, **options: Any) -> None:
    """The same handler of four kinds, for the events plain, thread, async and sync."""

    @app.handler("plain", **options)
    async def plain(n: int) -> Any:
        return body(n)

    @app.handler("thread", **options)
    def thread(n: int) -> Any:
        return body(n)

    @app.handler("async", name="transactional", **options)
    async def transactional(n: int, session: AsyncSession) -> Any:
        await session.execute(INSERT, {"n": n})
        return body(n)

    @app.handler("sync", name="transactional_thread", **options)
    def transactional_thread(n: int, session: Session) -> Any:
        session.execute(INSERT, {"n": n})
        return body(n)


KINDS = {"plain": "plain", "thread": "thread", "async": "transactional", "sync": "transactional_thread"}
EVERY = pytest.mark.parametrize("kind", KINDS)


def publish(outbox: Any, kind: str, *payloads: dict[str, Any]) -> None:
    outbox.attach(KINDS[kind], kind)
    outbox.publish(kind, *payloads)


@EVERY
def test_it_sees_event_and_outcome_of_every_run_and_the_first_is_outermost(
    outbox: Any, work: Any, until: Any, kind: str
) -> None:
    seen: list[Any] = []

    async def outer(event: workers.Event, next: workers.Next) -> workers.Outcome:
        seen.append(("outer", event.name, event.payload["n"]))
        outcome = await next(event)
        seen.append(("outer", type(outcome).__name__))
        return outcome

    app = workers.App(middleware=[outer])

    @app.middleware
    async def inner(event: workers.Event, next: workers.Next) -> workers.Outcome:
        seen.append("inner")
        outcome = await next(event)
        seen.append(("inner", type(outcome).__name__))
        return outcome

    def body(n: int) -> Any:
        seen.append("handler")
        if len(seen) < 5:
            raise OSError("first")
        return workers.Dead("second")

    kinds(app, body, backoff=SOON)
    publish(outbox, kind, {"n": 7})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 1)

    with capture_logs() as logs:
        work(app, scenario)
    enter = [("outer", kind, 7), "inner", "handler"]
    assert seen == [*enter, ("inner", "Retry"), ("outer", "Retry"), *enter, ("inner", "Dead"), ("outer", "Dead")]
    told = [(each["event"], each["error"]) for each in logs if each["event"].startswith("delivery.")]
    assert told == [("delivery.retry", "OSError"), ("delivery.dead", "Reject")]
    assert effects(outbox) == []


@EVERY
def test_context_variables_that_it_sets_reach_the_handler_and_no_other_run(
    outbox: Any, work: Any, until: Any, kind: str
) -> None:
    tenant: ContextVar[int] = ContextVar("tenant")
    app, seen, before = workers.App(), [], []

    @app.middleware
    async def bind(event: workers.Event, next: workers.Next) -> workers.Outcome:
        before.append(tenant.get(None))
        tenant.set(event.payload["n"])
        return await next(event)

    kinds(app, lambda n: seen.append((n, tenant.get())))
    publish(outbox, kind, {"n": 1}, {"n": 2})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 2)

    work(app, scenario)
    assert sorted(seen) == [(1, 1), (2, 2)]
    assert before == [None, None]


@EVERY
def test_it_may_make_a_failure_done_and_leave_the_handler_out(outbox: Any, work: Any, until: Any, kind: str) -> None:
    app, ran = workers.App(), []

    @app.middleware
    async def forgive(event: workers.Event, next: workers.Next) -> workers.Outcome:
        if event.payload["n"] == 1:
            return workers.Done()
        outcome = await next(event)
        assert isinstance(outcome, workers.Retry)
        return workers.Done()

    def body(n: int) -> None:
        ran.append(n)
        raise OSError

    kinds(app, body)
    publish(outbox, kind, {"n": 1}, {"n": 2})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 2)

    work(app, scenario)
    assert ran == [2]
    assert effects(outbox) == []


@pytest.mark.parametrize("kind", ["plain", "thread"])
@pytest.mark.parametrize("how", ["returned", "raised"])
def test_it_may_make_a_plain_handlers_done_a_failure(outbox: Any, work: Any, until: Any, kind: str, how: str) -> None:
    app = workers.App()

    @app.middleware
    async def doubt(event: workers.Event, next: workers.Next) -> workers.Outcome:
        outcome = await next(event)
        assert isinstance(outcome, workers.Done)
        if how == "raised":
            raise OSError("not convinced")
        return workers.Retry(0.01, "not convinced")

    kinds(app, lambda n: None, max_attempts=2, backoff=SOON)
    publish(outbox, kind, {"n": 1})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 1)

    work(app, scenario)
    attempts, error = outbox.one("SELECT attempts, error FROM outbox.dead_letter")
    assert attempts == 2
    assert "not convinced" in error


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("how", ["returned", "raised"])
def test_what_is_committed_stays_done_and_an_attempt_to_change_it_is_told(
    outbox: Any, work: Any, until: Any, kind: str, how: str
) -> None:
    app = workers.App()

    @app.middleware
    async def doubt(event: workers.Event, next: workers.Next) -> workers.Outcome:
        outcome = await next(event)
        assert outbox.count("done") == 1
        assert await next(event) == outcome == workers.Done()
        if how == "raised":
            raise OSError("too late")
        return workers.Retry(reason="too late")

    kinds(app, lambda n: None)
    publish(outbox, kind, {"n": 1})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1 and outbox.pending(kind, KINDS[kind]) == 0)

    with capture_logs() as logs:
        work(app, scenario)
    (told,) = [each for each in logs if each["event"] == "middleware.too_late"]
    assert told["log_level"] == "error"
    assert "too late" in str(told)
    assert effects(outbox) == [1]
    assert outbox.count("retrying") == outbox.count("dead") == 0


def test_a_timeout_is_an_outcome_and_a_snooze_stays_one(outbox: Any, work: Any, until: Any) -> None:
    app, seen = workers.App(), []

    @app.middleware
    async def watch(event: workers.Event, next: workers.Next) -> workers.Outcome:
        outcome = await next(event)
        seen.append(outcome)
        return outcome

    @app.handler("e", timeout=0.1, max_attempts=1)
    async def h(snooze: bool, context: workers.Context) -> None:
        if snooze:
            raise workers.Snooze(100, "not now")
        await asyncio.Event().wait()

    outbox.attach("h", "e")
    outbox.publish("e", {"snooze": True}, {"snooze": False})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 1 and outbox.count("retrying") == 1)

    work(app, scenario)
    assert Snoozed(100.0, "not now") in seen
    assert workers.Dead("HandlerTimeoutError: timed out after 0.1 s") in seen
    assert outbox.one("SELECT attempts FROM outbox.delivery WHERE state = 'retrying'") == 0


def test_a_soft_timeout_that_passes_is_an_outcome_and_a_middlewares_own_timeout_is_its_own(
    outbox: Any, work: Any, until: Any
) -> None:
    app, seen = workers.App(), []

    @app.middleware
    async def watch(event: workers.Event, next: workers.Next) -> workers.Outcome:
        try:
            async with asyncio.timeout(None if event.payload["soft"] else 0.05):
                outcome = await next(event)
        except TimeoutError:
            seen.append("its own")
            raise
        seen.append(outcome)
        return outcome

    @app.handler("e", soft_timeout=0.1, max_attempts=1)
    async def h(soft: bool) -> None:
        await asyncio.Event().wait()

    outbox.attach("h", "e")
    outbox.publish("e", {"soft": True}, {"soft": False})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 2)

    work(app, scenario)
    assert seen[0] == "its own"
    assert seen[1].reason.startswith("SoftTimeout")


def test_a_run_that_the_worker_ends_is_no_outcome(outbox: Any, work: Any, until: Any) -> None:
    app, seen = workers.App(), []

    @app.middleware
    async def stubborn(event: workers.Event, next: workers.Next) -> workers.Outcome:
        try:
            return await next(event)
        except asyncio.CancelledError:
            seen.append("cancelled")
            return workers.Done()

    @app.handler("e")
    async def h() -> None:
        seen.append("runs")
        await asyncio.Event().wait()

    outbox.attach("h", "e")
    outbox.publish("e", {})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: seen == ["runs"])
        worker.request_stop(now=True)

    work(app, scenario)
    assert seen == ["runs", "cancelled"]
    assert outbox.count("done") == 0


@pytest.mark.parametrize("wrong", ["nothing", "another event"])
def test_a_middleware_that_breaks_the_rules_fails_the_attempt_with_advice(
    outbox: Any, work: Any, until: Any, wrong: str
) -> None:
    app = workers.App()

    @app.middleware
    async def careless(event: workers.Event, next: workers.Next) -> workers.Outcome:
        if wrong == "nothing":
            await next(event)
            return None  # type: ignore[return-value]
        return await next(workers.Event(event.id, event.name, "{}"))

    @app.handler("e", max_attempts=1)
    async def h() -> None: ...

    outbox.attach("h", "e")
    outbox.publish("e", {})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 1)

    work(app, scenario)
    advice = {"nothing": "returned None: return what", "another event": "must pass on the event"}[wrong]
    assert advice in outbox.one("SELECT error FROM outbox.dead_letter")


def test_it_may_run_a_handler_again_but_not_one_that_runs_at_most_once(outbox: Any, work: Any, until: Any) -> None:
    app, ran = workers.App(), []

    @app.middleware
    async def again(event: workers.Event, next: workers.Next) -> workers.Outcome:
        await next(event)
        return await next(event)

    @app.handler("e")
    async def usual() -> None:
        ran.append("usual")
        if len(ran) == 1:
            raise OSError

    @app.handler("f", at_most_once=True)
    async def rare() -> None:
        ran.append("rare")

    outbox.attach("usual", "e")
    outbox.attach("rare", "f")
    outbox.publish("e", {})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1)
        outbox.publish("f", {})
        await until(lambda: outbox.one("SELECT error LIKE '%%must not run%%' FROM outbox.dead_letter"))

    work(app, scenario)
    assert ran == ["usual", "usual", "rare"]


def test_what_cannot_be_a_middleware_is_refused() -> None:
    def plain(event: workers.Event, next: workers.Next) -> None: ...

    with pytest.raises(workers.HandlerError, match="must be `async def`"):
        workers.App(middleware=[plain])  # type: ignore[list-item]


def test_without_middleware_nothing_is_wrapped(settings: Any) -> None:
    app = workers.App()

    @app.handler("e")
    async def h() -> None: ...

    execution = Execution(app.handlers["h"], settings, None, 1, structlog.get_logger())  # type: ignore[arg-type]
    assert execution.run == execution._plain


@pytest.mark.parametrize("own", [False, True], ids=["only middleware", "batch middleware too"])
def test_a_worker_whose_batches_run_without_any_says_so(own: bool, work: Any) -> None:
    async def single(event: workers.Event, next: workers.Next) -> workers.Outcome:
        raise AssertionError

    async def several(events: Sequence[workers.Event], next: workers.BatchNext) -> workers.Outcomes:
        raise AssertionError

    app = workers.App(middleware=[single], batch_middleware=[several] if own else [])

    @app.handler("e", batch=10)
    async def many(events: list[workers.Event]) -> None: ...

    async def scenario(worker: workers.Worker) -> None: ...

    with capture_logs() as logs:
        work(app, scenario)
    told = [each["handlers"] for each in logs if each["event"] == "middleware.skipped"]
    assert told == ([] if own else [["many"]])
