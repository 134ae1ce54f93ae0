"""The caller's trace context and correlation id, as headers. Looks only at what the process has already imported."""

from __future__ import annotations

import sys
from contextvars import ContextVar

MAX_LENGTH = 512
"""Characters of one header; longer ambient values are left out."""

correlation_id: ContextVar[str | None] = ContextVar("outbox.correlation_id", default=None)
"""Set it, in a middleware say, and every event added in that context carries the header `correlation_id`. Without it,
the `correlation_id` bound in structlog's context variables is taken.

>>> outbox.correlation_id.set(request.headers["X-Request-Id"])
"""


def headers() -> dict[str, str]:
    """`traceparent`, `tracestate` and `correlation_id` of the running context, those that there are."""
    found: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules:
        _add_trace_context(found)
    correlation = correlation_id.get()
    if correlation is None and "structlog.contextvars" in sys.modules:
        correlation = sys.modules["structlog.contextvars"].get_contextvars().get("correlation_id")
    if correlation is not None:
        _put(found, "correlation_id", str(correlation))
    return found


def _add_trace_context(found: dict[str, str]) -> None:
    """Written out here, because the process's propagator may be set to another format than W3C."""
    context = sys.modules["opentelemetry.trace"].get_current_span().get_span_context()
    if context.is_valid:
        found["traceparent"] = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        if context.trace_state:
            _put(found, "tracestate", context.trace_state.to_header())


def _put(found: dict[str, str], name: str, value: str) -> None:
    # A strange ambient value must never fail a business transaction.
    if value and len(value) <= MAX_LENGTH and value.isprintable():
        found[name] = value
