"""Spans as OpenTelemetry's conventions for messaging have them, where an SDK is active.

`create` is made by `add`, `send` by the relay for each batch, `process` by the worker for each run. Without an SDK, or
without OpenTelemetry, there are none: only what the process has already imported is looked at.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

from outbox import trace

SYSTEM = "transactional_outbox"

MOST_LINKS = 128
"""Links of one span: as many as an SDK keeps unless it is told otherwise."""


def tracer() -> Any | None:
    """Where spans are made; None while no SDK is active.

    >>> tracer() is None
    True
    """
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    provider = api.get_tracer_provider()
    return None if isinstance(provider, api.ProxyTracerProvider | api.NoOpTracerProvider) else _tracer(provider)


@lru_cache(maxsize=1)
def _tracer(provider: Any) -> Any:
    return provider.get_tracer("transactional-outbox")


def attributes(
    operation: str,
    *,
    destination: str | None = None,
    message: str | None = None,
    group: str | None = None,
    count: int | None = None,
) -> dict[str, str | int]:
    """A span's attributes. `operation` is create, send or process; `destination` the event's name, `message` its id,
    `group` the handler, `count` how many events a batch has."""
    given = {
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": destination,
        "messaging.message.id": message,
        "messaging.consumer.group.name": group,
        "messaging.batch.message_count": count,
    }
    return {name: value for name, value in given.items() if value is not None}


def kind(name: str) -> Any:
    """OpenTelemetry's kind of span. Only where there is a tracer."""
    return sys.modules["opentelemetry.trace"].SpanKind[name]


def create(headers: dict[str, str], event_name: str, *, message: str | None = None, count: int | None = None) -> None:
    """Make a span for the creation of an event, or of `count` at once, and let `headers` carry its context on."""
    if (made := tracer()) is None:
        return
    span = made.start_span(
        f"create {event_name}",
        kind=kind("PRODUCER"),
        attributes=attributes("create", destination=event_name, message=message, count=count),
    )
    span.end()
    trace.put_context(headers, span.get_span_context())


def failed(span: Any, error: BaseException) -> None:
    """Note that what a span stands for has failed: with the error's type only, for its text may hold what is secret."""
    span.set_attribute("error.type", type(error).__qualname__)
    span.set_status(sys.modules["opentelemetry.trace"].StatusCode.ERROR)


def link(span: Any, headers: dict[str, Any]) -> bool:
    """Link a span with the creation of an event that has these headers; whether they name one."""
    context = trace.remote_context(headers)
    if context is not None:
        span.add_link(context)
    return context is not None
