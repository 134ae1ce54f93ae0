"""The write side of a transactional outbox: events that commit together with the business data.

>>> event = outbox.add(session, "send_email", user_id=user.id, template="welcome")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from outbox.errors import (
    ConfigurationError,
    NotYetSupportedError,
    OutboxError,
    PayloadError,
    SchemaError,
    TargetError,
)
from outbox.event import Event
from outbox.schema import metadata
from outbox.trace import correlation_id
from outbox.write import add, add_many, insert

if TYPE_CHECKING:
    from outbox import testing as testing
    from outbox.admin import status as status

__all__ = [
    "ConfigurationError",
    "Event",
    "NotYetSupportedError",
    "OutboxError",
    "PayloadError",
    "SchemaError",
    "TargetError",
    "add",
    "add_many",
    "correlation_id",
    "insert",
    "metadata",
    "status",
    "testing",
]


def __getattr__(name: str) -> Any:
    # A web process that only writes does not pay for these.
    if name == "testing":
        return importlib.import_module("outbox.testing")
    if name == "status":
        return importlib.import_module("outbox.admin").status
    raise AttributeError(f"module 'outbox' has no attribute {name!r}")
