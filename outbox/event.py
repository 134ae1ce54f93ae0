"""The event: a named, immutable fact or command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any
from uuid import UUID

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, eq=True)
class Event:
    """What `outbox.add` returns and a handler may ask for.

    `id` is the outbox id, a UUIDv7: the idempotency key of everything done because of this event. `created_at` is given
    by the database; it is None on the value that `outbox.add` returns.

    >>> event = outbox.add(session, "send_email", user_id=7)
    >>> event.payload["user_id"]
    7
    """

    id: UUID
    name: str
    payload_json: str = field(repr=False)
    key: str | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_HEADERS, repr=False)
    created_at: datetime | None = None

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[type[Event], tuple[object, ...]]:
        # A read-only view of the headers cannot be pickled, and events travel to child processes.
        return Event, (self.id, self.name, self.payload_json, self.key, dict(self.headers), self.created_at)

    @cached_property
    def payload(self) -> Any:
        """The payload, parsed from exactly the JSON text that was stored."""
        return json.loads(self.payload_json)
