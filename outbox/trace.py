"""The caller's trace context and correlation id, as headers, and those of an event in force again while it is handled.
Looks only at what the process has already imported."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

MAX_LENGTH = 512
"""Characters of one header; longer ambient values are left out."""

correlation_id: ContextVar[str | None] = ContextVar("outbox.correlation_id", default=None)
"""Set it, in a middleware say, and every event added in that context carries the header `correlation_id`. Without it,
the `correlation_id` bound in structlog's context variables is taken.

>>> outbox.correlation_id.set(request.headers["X-Request-Id"])
"""

_received: ContextVar[Mapping[str, str]] = ContextVar("outbox.received", default=MappingProxyType({}))
"""Trace context of the event that is being handled, for a process without OpenTelemetry."""

_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})\Z")


def receive(headers: Mapping[str, str]) -> None:
    """Put an event's trace context and correlation id in force in the running context: what is added in it carries
    them on, logs show the correlation id, and OpenTelemetry, where it is imported, sees the event's span as parent.

    >>> contextvars.copy_context().run(trace.receive, event.headers)
    """
    carried: dict[str, str] = {}
    for name in ("traceparent", "tracestate", "correlation_id"):
        if isinstance(value := headers.get(name), str):
            _put(carried, name, value)
    if (correlation := carried.pop("correlation_id", None)) is not None:
        correlation_id.set(correlation)
        if "structlog.contextvars" in sys.modules:
            sys.modules["structlog.contextvars"].bind_contextvars(correlation_id=correlation)
    if _TRACEPARENT.match(carried.get("traceparent", "")) is not None:
        _received.set(carried)
        if "opentelemetry.trace" in sys.modules and (context := remote_context(carried)) is not None:
            trace = sys.modules["opentelemetry.trace"]
            span = trace.NonRecordingSpan(context)
            sys.modules["opentelemetry.context"].attach(trace.set_span_in_context(span))


def correlation_of(headers: str) -> str | None:
    """The correlation id in an event's headers as they are stored; None without one, and for what are no headers.

    >>> correlation_of('{"correlation_id": "req-7"}')
    'req-7'
    """
    if "correlation_id" not in headers:
        return None
    found: dict[str, str] = {}
    with contextlib.suppress(ValueError, TypeError, KeyError):
        _put(found, "correlation_id", str(json.loads(headers)["correlation_id"]))
    return found.get("correlation_id")


def remote_context(headers: Mapping[str, object]) -> Any | None:
    """OpenTelemetry's context of the span that an event's headers name; None when they name none.

    Only where `opentelemetry.trace` is imported.
    """
    parent = _TRACEPARENT.match(str(headers.get("traceparent", "")))
    if parent is None:
        return None
    trace = sys.modules["opentelemetry.trace"]
    context = trace.SpanContext(
        trace_id=int(parent[1], 16),
        span_id=int(parent[2], 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(int(parent[3], 16)),
        trace_state=trace.TraceState.from_header([str(headers.get("tracestate", ""))]),
    )
    return context if context.is_valid else None


def headers() -> dict[str, str]:
    """`traceparent`, `tracestate` and `correlation_id` of the running context, those that there are."""
    found: dict[str, str] = dict(_received.get())
    if "opentelemetry.trace" in sys.modules:
        put_context(found, sys.modules["opentelemetry.trace"].get_current_span().get_span_context())
    correlation = correlation_id.get()
    if correlation is None and "structlog.contextvars" in sys.modules:
        correlation = sys.modules["structlog.contextvars"].get_contextvars().get("correlation_id")
    if correlation is not None:
        _put(found, "correlation_id", str(correlation))
    return found


def put_context(found: dict[str, str], context: Any) -> None:
    """Let headers carry this OpenTelemetry context on, if it is one.

    Written out here, because the process's propagator may be set to another format than W3C.
    """
    if context.is_valid:
        found.pop("tracestate", None)
        found["traceparent"] = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        if context.trace_state:
            _put(found, "tracestate", context.trace_state.to_header())


def _put(found: dict[str, str], name: str, value: str) -> None:
    # A strange ambient value must never fail a business transaction.
    if value and len(value) <= MAX_LENGTH and value.isprintable():
        found[name] = value
