"""Spans by OpenTelemetry's conventions for messaging, from the request to the handler, where an SDK is active."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import outbox
import workers
from outbox.settings import Settings
from outbox_testing import drain_sync

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Spans:
    """What was exported."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def of(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        [span] = self.of(name)
        return span


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """An SDK that is active for one test."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield Spans(exporter)
    provider.shutdown()


@pytest.fixture
def session(settings: Settings) -> Iterator[Session]:
    engine = create_engine(settings.sqlalchemy_url())
    with Session(engine) as opened:
        yield opened
    engine.dispose()


def identity(span: ReadableSpan) -> tuple[int, int]:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id


def parent(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def links(span: ReadableSpan) -> set[tuple[int, int]]:
    return {(link.context.trace_id, link.context.span_id) for link in span.links}


def test_a_request_its_event_its_batch_and_its_run_are_one_trace(
    spans: Spans, session: Session, settings: Settings
) -> None:
    app = workers.App()

    @app.handler("paid", name="bill")
    async def bill(session: AsyncSession) -> None:
        outbox.add(session, "billed")

    with trace.get_tracer("web").start_as_current_span("POST /pay"):
        event = outbox.add(session, "paid")
        session.commit()
    drain_sync(app, settings)
    request, create, run = spans.one("POST /pay"), spans.one("create paid"), spans.one("process paid")
    assert parent(create) == identity(request)
    assert parent(run) == identity(create)
    assert parent(spans.one("create billed")) == identity(run)
    assert identity(create) in {link for span in spans.of("send paid") for link in links(span)}
    facts = {"messaging.system": "transactional_outbox", "messaging.destination.name": "paid"}
    assert (create.kind, run.kind) == (trace.SpanKind.PRODUCER, trace.SpanKind.CONSUMER)
    assert create.attributes == facts | {
        "messaging.operation.name": "create", "messaging.operation.type": "create",
        "messaging.message.id": str(event.id),
    }  # fmt: skip
    assert run.attributes == facts | {
        "messaging.operation.name": "process", "messaging.operation.type": "process",
        "messaging.message.id": str(event.id), "messaging.consumer.group.name": "bill", "outbox.attempt": 1,
    }  # fmt: skip
    send = spans.one("send paid")
    assert send.kind is trace.SpanKind.PRODUCER
    assert send.attributes == facts | {
        "messaging.operation.name": "send", "messaging.operation.type": "send", "messaging.batch.message_count": 1,
    }  # fmt: skip


def bill_elsewhere(url: str) -> None:
    """A handler for child processes."""
    assert not isinstance(trace.get_tracer_provider(), TracerProvider), "the SDK is the worker's"
    with create_engine(url).begin() as connection:
        outbox.add(connection, "billed")


def test_what_a_handler_adds_in_a_child_process_is_a_child_of_its_run(
    spans: Spans, session: Session, settings: Settings
) -> None:
    app = workers.App()
    app.handler("paid", pool="process")(bill_elsewhere)
    with structlog.contextvars.bound_contextvars(correlation_id="req-7"):
        outbox.add(session, "paid", url=settings.sqlalchemy_url())
    session.commit()
    assert drain_sync(app, settings).done == {"bill_elsewhere": 1}
    headers = session.execute(text("SELECT headers FROM outbox.event WHERE name = 'billed'")).scalar_one()
    trace_id, span_id = identity(spans.one("process paid"))
    assert headers["traceparent"].startswith(f"00-{trace_id:032x}-{span_id:016x}-")
    assert headers["correlation_id"] == "req-7"


def test_a_batch_of_the_relay_and_one_of_a_handler_are_linked_with_the_creation_of_their_events(
    spans: Spans, session: Session, settings: Settings
) -> None:
    app = workers.App()

    @app.handler("paid", batch=3, batch_wait=60)
    async def h(events: list[workers.Event]) -> None: ...

    for number in range(2):
        outbox.add(session, "paid", number=number)
    outbox.add_many(session, "paid", [{"number": 2}])
    session.commit()
    drain_sync(app, settings)
    created = {identity(span) for span in spans.of("create paid")}
    assert len(created) == 3
    run, [send] = spans.one("process paid"), spans.of("send paid")
    assert links(run) == links(send) == created
    assert run.attributes is not None
    assert (run.parent, run.attributes["messaging.batch.message_count"]) == (None, 3)


def test_many_events_added_at_once_have_one_span(spans: Spans, session: Session) -> None:
    events = outbox.add_many(session, "paid", [{}, {}, {}])
    create = spans.one("create paid")
    assert create.attributes is not None
    assert create.attributes["messaging.batch.message_count"] == 3
    trace_id, span_id = identity(create)
    assert {event.headers["traceparent"][:-3] for event in events} == {f"00-{trace_id:032x}-{span_id:016x}"}
    assert outbox.add_many(session, "paid", []) == []


def test_a_traceparent_that_the_caller_gives_is_never_overwritten(
    spans: Spans, session: Session, settings: Settings
) -> None:
    app, seen = workers.App(), []

    @app.handler("paid", batch=1)
    async def h(events: list[workers.Event]) -> None:
        seen.extend(event.headers["traceparent"] for event in events)

    with trace.get_tracer("web").start_as_current_span("POST /pay"):
        outbox.add(session, "paid", _headers={"traceparent": GIVEN})
        session.commit()
    drain_sync(app, settings)
    assert seen == [GIVEN]
    assert spans.of("create paid") == []


def test_a_run_that_fails_says_with_what_and_none_of_its_text_and_each_attempt_has_a_span(
    spans: Spans, session: Session, settings: Settings
) -> None:
    app = workers.App()

    @app.handler("paid", backoff=0.01)
    def h(context: workers.Context) -> None:
        assert trace.get_current_span().is_recording(), "the span is in force in a handler's thread"
        if context.attempt == 1:
            raise OSError("s3cret")
        if context.attempt == 2:
            raise workers.RetryLater(0.01)

    outbox.add(session, "paid")
    session.commit()
    drain_sync(app, settings)
    found: list[Any] = spans.of("process paid")
    assert [(span.attributes["outbox.attempt"], span.attributes.get("error.type")) for span in found] == [
        (1, "OSError"), (2, None), (3, None),
    ]  # fmt: skip
    assert [span.status.status_code.name for span in found] == ["ERROR", "UNSET", "UNSET"]
    assert "s3cret" not in "".join(span.to_json() for span in found)


def test_a_payload_that_is_refused_has_no_span(spans: Spans, session: Session) -> None:
    with pytest.raises(outbox.PayloadError):
        outbox.add(session, "paid", what=object())
    assert spans.of("create paid") == []


def test_without_an_sdk_nothing_is_made_and_nothing_is_around_a_run(session: Session) -> None:
    from outbox import spans
    from workers import tracing

    app = workers.App()

    @app.handler("paid")
    async def h() -> None: ...

    assert spans.tracer() is None
    assert outbox.add(session, "paid").headers == {}

    async def run(job: Any) -> bool:
        return True

    assert tracing.around(app.handlers["h"], run) is run


BARE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import outbox, workers
import console.program, relay.monitoring, workers.monitoring
from outbox.settings import Settings
from outbox_testing import drain_sync
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

settings, app = Settings(_env_file=None), workers.App()

@app.handler("paid", batch=2)
async def many(events: list[workers.Event]) -> None: ...

@app.handler("paid")
def one(event: workers.Event, session: Session) -> None:
    outbox.add(session, "followed")

with Session(create_engine(settings.sqlalchemy_url())) as session:
    outbox.add(session, "paid", _headers={"traceparent": sys.argv[1]})
    outbox.add_many(session, "paid", [{}, {}])
    session.commit()
print(sorted(drain_sync(app, settings).done.items()))
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""


def test_everything_works_where_opentelemetry_is_not_installed_and_trace_context_travels_on(
    session: Session, settings: Settings
) -> None:
    given = {
        "OUTBOX_DATABASE_URL": settings.libpq_url(),
        "OUTBOX_REDIS_URL": settings.redis_url.get_secret_value(),
    }
    # The copies that tests start as programs have it loaded: the Redis client loads it where it is.
    program = [sys.executable, "-c", BARE, GIVEN]
    done = subprocess.run(program, env=os.environ | given, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["[('many', 3), ('one', 3)]", "[]"]
    query = "SELECT headers ->> 'traceparent' FROM outbox.event WHERE name = 'followed' ORDER BY 1"
    assert session.scalars(text(query)).all() == [GIVEN, None, None]
