from __future__ import annotations

import subprocess
import sys

import pytest

from outbox import trace

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

WITHOUT = f"""
import contextvars, sys
from outbox import trace

def handle():
    trace.receive({{"traceparent": "{PARENT}", "tracestate": "vendor=1", "correlation_id": "req-7", "tenant": "acme"}})
    return trace.headers()

assert contextvars.copy_context().run(handle) == {{
    "traceparent": "{PARENT}", "tracestate": "vendor=1", "correlation_id": "req-7"
}}
assert trace.headers() == {{}}
assert not [name for name in sys.modules if name.startswith(("opentelemetry", "structlog"))]
"""


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ('{"correlation_id": "req-7"}', "req-7"),
        ("", None),
        ("{}", None),
        ('{"correlation_id": ', None),
        ('["correlation_id"]', None),
        ('{"correlation_id": "a\\nb"}', None),
    ],
)
def test_the_correlation_id_is_found_in_headers_and_in_nothing_else(headers: str, found: str | None) -> None:
    assert trace.correlation_of(headers) == found


def test_trace_context_is_carried_on_without_opentelemetry_and_structlog() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT], check=True, timeout=60)
