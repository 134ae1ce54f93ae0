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
from outbox.trace import correlation_id

if TYPE_CHECKING:
    from outbox import schema as schema
    from outbox import testing as testing
    from outbox.admin.find import status
    from outbox.schema import metadata
    from outbox.write import add, add_many, insert

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


# The relay and most commands need no SQLAlchemy, and a web process that only writes no more than that: what a process
# does not use it does not load.
_MODULES = ("schema", "testing")
_PLACES = {"add": "write", "add_many": "write", "insert": "write", "metadata": "schema", "status": "admin.find"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"outbox.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'outbox' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"outbox.{_PLACES[name]}"), name)
    # From here on it is found without asking here.
    globals()[name] = value
    return value
