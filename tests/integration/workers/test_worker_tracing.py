"""What came with an event is in force while it is handled, and goes on with what the handler adds."""

from __future__ import annotations

import json
from typing import Any

import pytest
import structlog
from opentelemetry import trace
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

import outbox as library
import workers
from outbox.names import stream_key

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HEADERS = {"correlation_id": "req-7", "traceparent": PARENT, "tracestate": "vendor=1", "tenant": "acme"}


def publish(outbox: Any, name: str, headers: dict[str, str] | None) -> str:
    ((event_id, seq, at, payload),) = outbox.write(name, {})
    outbox.tick += 1
    text = "" if headers is None else json.dumps(headers)
    outbox.redis.xadd(
        stream_key("outbox", name),
        {"id": event_id, "name": name, "key": "", "payload": payload, "headers": text, "at": str(at)},
        id=f"{outbox.tick}-{seq}",
    )
    return str(event_id)


def added(outbox: Any, name: str) -> Any:
    return outbox.one("SELECT headers FROM outbox.event WHERE name = %s", name)


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_correlation_id_and_trace_context_travel_to_events_that_a_handler_adds(
    outbox: Any, work: Any, until: Any, kind: str
) -> None:
    app, seen = workers.App(), []

    def note() -> None:
        span = trace.get_current_span().get_span_context()
        bound = structlog.contextvars.get_contextvars()
        seen.append((library.correlation_id.get(), f"{span.trace_id:032x}", span.is_remote, bound["correlation_id"]))

    if kind == "async":

        @app.handler("e", name="h")
        async def on_the_loop(session: AsyncSession) -> None:
            note()
            library.add(session, "followed")
            library.add(session, "given", _headers={"correlation_id": "mine", "traceparent": "theirs"})
    else:

        @app.handler("e", name="h")
        def in_a_thread(session: Session) -> None:
            note()
            library.add(session, "followed")
            library.add(session, "given", _headers={"correlation_id": "mine", "traceparent": "theirs"})

    outbox.attach("h", "e")
    publish(outbox, "e", HEADERS)

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    assert seen == [("req-7", PARENT[3:35], True, "req-7")]
    assert added(outbox, "followed") == {key: HEADERS[key] for key in ("correlation_id", "traceparent", "tracestate")}
    assert added(outbox, "given")["correlation_id"] == "mine"
    assert added(outbox, "given")["traceparent"] == "theirs"


def test_what_came_with_one_event_never_reaches_the_next(outbox: Any, work: Any, until: Any) -> None:
    app, seen = workers.App(), {}

    @app.handler("e", concurrency=1)
    async def h(event: workers.Event) -> None:
        seen[str(event.id)] = library.correlation_id.get(), trace.get_current_span().get_span_context().is_valid

    outbox.attach("h", "e")
    first, second = publish(outbox, "e", HEADERS), publish(outbox, "e", None)

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 2)

    work(app, scenario)
    assert seen == {first: ("req-7", True), second: (None, False)}


def test_logs_of_a_handler_say_handler_event_attempt_and_correlation_id(outbox: Any, work: Any, until: Any) -> None:
    app, bound = workers.App(), []

    @app.handler("e", backoff=workers.Backoff(initial=0.01, jitter=0))
    async def h(context: workers.Context) -> None:
        bound.append(structlog.contextvars.get_contextvars())
        if context.attempt == 1:
            raise OSError

    @app.handler("f", batch=10)
    async def many(events: list[workers.Event]) -> None:
        bound.append(structlog.contextvars.get_contextvars())

    outbox.attach("h", "e")
    outbox.attach("many", "f")
    event_id = publish(outbox, "e", {"correlation_id": "req-7"})
    outbox.sql.execute("UPDATE outbox.event SET headers = %s", ['{"correlation_id": "req-7"}'])

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1)
        outbox.publish("f", {}, {})
        await until(lambda: outbox.count("done") == 3)

    work(app, scenario)
    own = {"handler": "h", "event_id": event_id, "correlation_id": "req-7"}
    assert bound == [own | {"attempt": 1}, own | {"attempt": 2}, {"handler": "many"}]


def in_force(context: workers.Context) -> dict[str, Any]:
    """What is bound for logs: as the first attempt's error, and as the second one's result."""
    bound = structlog.contextvars.get_contextvars()
    if context.attempt == 1:
        raise OSError(json.dumps(bound, sort_keys=True))
    return bound


async def in_force_on_the_loop(context: workers.Context) -> dict[str, Any]:
    return in_force(context)


@pytest.mark.parametrize(
    ("handler", "options"),
    [(in_force_on_the_loop, {}), (in_force, {}), (in_force, {"pool": "process"})],
    ids=["loop", "thread", "process"],
)
def test_handler_event_attempt_and_correlation_id_are_bound_wherever_a_handler_runs(
    outbox: Any, work: Any, until: Any, handler: Any, options: dict[str, Any]
) -> None:
    app = workers.App()
    app.handler("e", name="h", backoff=workers.Backoff(initial=0.01, jitter=0), **options)(handler)
    outbox.attach("h", "e")
    event_id = publish(outbox, "e", {"correlation_id": "req-7"})
    outbox.sql.execute("UPDATE outbox.event SET headers = %s", ['{"correlation_id": "req-7"}'])

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    result, failures = outbox.one("SELECT result, failures FROM outbox.delivery")
    own = {"handler": "h", "event_id": event_id, "correlation_id": "req-7"}
    assert result == own | {"attempt": 2}
    assert failures[0]["error"].startswith(f"OSError: {json.dumps(own | {'attempt': 1}, sort_keys=True)} (at ")


@pytest.mark.parametrize("batch", [None, 2])
def test_our_own_lines_about_a_failure_say_handler_event_attempt_and_correlation_id(
    outbox: Any, work: Any, until: Any, batch: int | None
) -> None:
    app = workers.App()

    if batch is None:

        @app.handler("e", name="h", max_attempts=1)
        async def alone() -> None:
            raise OSError
    else:

        @app.handler("e", name="h", max_attempts=1, batch=batch)
        async def together(events: list[workers.Event]) -> None:
            raise OSError

    outbox.attach("h", "e")
    event_id = publish(outbox, "e", {"correlation_id": "req-7"})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("dead") == 1)

    with capture_logs() as logs:
        work(app, scenario)
    [line] = [each for each in logs if each["event"] == "delivery.dead"]
    names = ("handler", "event_id", "attempt", "correlation_id")
    assert [line[name] for name in names] == ["h", event_id, 1, "req-7"]


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": "nonsense", "tracestate": "x=1"},
        {"traceparent": f"00-{'0' * 32}-{'0' * 16}-01"},
        {"correlation_id": "x" * 10_000},
        {"tracestate": "x=1"},
    ],
)
def test_headers_that_make_no_sense_harm_nobody(outbox: Any, work: Any, until: Any, headers: dict[str, str]) -> None:
    app = workers.App()

    @app.handler("e")
    async def h(session: AsyncSession) -> None:
        assert library.correlation_id.get() is None
        assert not trace.get_current_span().get_span_context().is_valid
        library.add(session, "followed")

    outbox.attach("h", "e")
    publish(outbox, "e", headers)

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1)

    with capture_logs() as logs:
        work(app, scenario)
    assert [each["event"] for each in logs if each["log_level"] != "info"] == []
    assert outbox.one("SELECT count(*) FROM outbox.event WHERE name = 'followed'") == 1
