"""The event as a value, and what `add` checks before it touches a session."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

import pytest
import structlog
from opentelemetry import trace as otel
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState
from pydantic import BaseModel
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

import outbox
from outbox import session as sessions

ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")


def add(*arguments: Any, **options: Any) -> outbox.Event:
    """Add to a session that has no database."""
    return outbox.add(Session(OFFLINE), *arguments, **options)


class Offline:
    """Stands where an engine would: touching it fails the test."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"add used the engine: {name}")


OFFLINE: Any = Offline()


class SendEmail(BaseModel):
    __event__: ClassVar[str] = "send_email"
    user_id: int


@dataclass
class Paid:
    order: int
    __event__ = "order.paid"


class Unnamed(BaseModel):
    user_id: int


def test_an_event_is_frozen_hashable_and_picklable() -> None:
    event = add("a", number=1, _headers={"h": "1"})
    with pytest.raises(FrozenInstanceError):
        event.name = "b"  # type: ignore[misc]
    with pytest.raises(TypeError):
        event.headers["h"] = "2"  # type: ignore[index]
    assert event in {event}
    assert pickle.loads(pickle.dumps(event)) == event
    assert pickle.loads(pickle.dumps(add("a"))).headers == {}


def test_the_event_does_not_show_its_payload() -> None:
    assert "secret" not in repr(add("a", password="secret", _headers={"h": "secret"}))


def test_ids_are_uuid_7_and_may_be_given() -> None:
    event = add("a")
    assert event.id.version == 7
    assert type(event.id) is UUID
    assert add("a", _id=ID).id == add("a", _id=str(ID)).id == ID


@pytest.mark.parametrize(
    ("model", "name", "payload"),
    [(SendEmail(user_id=7), "send_email", {"user_id": 7}), (Paid(3), "order.paid", {"order": 3})],
)
def test_a_model_carries_the_name_of_its_event(model: object, name: str, payload: dict[str, Any]) -> None:
    event = add(model, _key="k")
    assert (event.name, event.payload, event.key) == (name, payload, "k")


@pytest.mark.parametrize("wrong", [Unnamed(user_id=1), None, 7, b"name", SendEmail])
def test_what_carries_no_name_is_refused(wrong: object) -> None:
    with pytest.raises(outbox.PayloadError, match=r"__event__|must be an object|not a value"):
        add(wrong)


def test_a_model_with_keyword_arguments_is_ambiguous() -> None:
    with pytest.raises(outbox.PayloadError, match="not a model with keyword"):
        add(SendEmail(user_id=1), template="welcome")


@pytest.mark.parametrize("name", ["", "1a", "a b", "x" * 129])
def test_an_invalid_name_is_refused(name: str) -> None:
    with pytest.raises(outbox.PayloadError, match="event name"):
        add(name)


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ("_keys", "did you mean _key"),
        ("_header", "did you mean _headers"),
        ("_zzz", "there are _key"),
        ("_", "there are"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest_one(option: str, advice: str) -> None:
    with pytest.raises(outbox.PayloadError, match=advice):
        add("a", **{option: 1})


def test_an_option_inside_a_payload_of_many_is_refused() -> None:
    with pytest.raises(outbox.PayloadError, match="_key"):
        outbox.add_many(Session(OFFLINE), "a", [{"_key": "k"}])


@pytest.mark.parametrize(
    "options", [{"_delay": 5}, {"_delay": timedelta(0)}, {"_at": datetime(2026, 1, 1, tzinfo=UTC)}]
)
def test_what_is_not_built_yet_is_not_silently_ignored(options: dict[str, Any]) -> None:
    with pytest.raises(outbox.NotYetSupportedError, match="not supported yet") as caught:
        add("a", **options)
    assert isinstance(caught.value, NotImplementedError)


@pytest.mark.parametrize("target", [None, "session", object()])
def test_only_sessions_and_connections_take_events(target: Any) -> None:
    with pytest.raises(outbox.TargetError, match=r"outbox\.insert"):
        outbox.add(target, "a")


def test_nothing_is_pending_after_a_refusal_and_add_keeps_the_order() -> None:
    session = Session(OFFLINE)
    with pytest.raises(outbox.PayloadError):
        outbox.add(session, "bad", value=object())
    assert not session.new
    added = [
        outbox.add(session, "a"),
        outbox.add(session, "b"),
        *outbox.add_many(session, SendEmail, [SendEmail(user_id=1)]),
    ]
    assert sessions.pending(session) == added


@pytest.mark.parametrize("attribute", ["sqlstate", "pgcode"])
def test_a_missing_table_is_recognised_whatever_the_driver_calls_its_code(attribute: str) -> None:
    original = type("UndefinedTable", (Exception,), {attribute: "42P01"})()
    assert sessions.sqlstate(ProgrammingError("INSERT", {}, original)) == "42P01"
    assert sessions.sqlstate(ProgrammingError("INSERT", {}, Exception())) is None


SPAN = NonRecordingSpan(
    SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1), trace_state=TraceState([("vendor", "x")]))
)


def test_headers_carry_the_running_trace() -> None:
    with otel.use_span(SPAN):
        headers = add("a").headers
    assert headers == {
        "traceparent": "00-00000000000000000000000000000abc-0000000000000def-01",
        "tracestate": "vendor=x",
    }
    assert add("a").headers == {}


def test_headers_carry_the_correlation_id_of_structlog_or_of_ours() -> None:
    with structlog.contextvars.bound_contextvars(correlation_id="theirs"):
        assert add("a").headers == {"correlation_id": "theirs"}
        token = outbox.correlation_id.set("ours")
        try:
            assert add("a").headers == {"correlation_id": "ours"}
            assert add("a", _headers={"correlation_id": "given"}).headers == {"correlation_id": "given"}
            assert outbox.add_many(Session(OFFLINE), "a", [{}])[0].headers == {"correlation_id": "ours"}
        finally:
            outbox.correlation_id.reset(token)


@pytest.mark.parametrize("ambient", ["", "a\0b", "\ud800", "x" * 10_000, "line\nbreak"])
def test_a_strange_ambient_id_is_left_out_and_fails_nothing(ambient: str) -> None:
    with structlog.contextvars.bound_contextvars(correlation_id=ambient):
        assert add("a").headers == {}
