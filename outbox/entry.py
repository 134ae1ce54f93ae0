"""The stream entry: how an event looks in Redis.

Fields `id`, `name`, `key`, `payload`, `headers`, `at`; all text. `key` and `headers` are empty when there are none,
`at` is the event's creation time in microseconds since 1970 UTC. Other languages can read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

from outbox.event import Event

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_microseconds(moment: datetime) -> int:
    """A timestamp as whole microseconds since 1970 UTC, exactly."""
    return (moment - _EPOCH) // _MICROSECOND


def from_microseconds(value: int) -> datetime:
    """The inverse of `to_microseconds`."""
    return _EPOCH + timedelta(microseconds=value)


def encode(event: Event) -> dict[bytes, bytes]:
    """The entry of an event, as the relay appends it."""
    return {
        b"id": str(event.id).encode(),
        b"name": event.name.encode(),
        b"key": (event.key or "").encode(),
        b"payload": event.payload_json.encode(),
        b"headers": json.dumps(dict(event.headers), ensure_ascii=False).encode() if event.headers else b"",
        b"at": str(to_microseconds(event.created_at)).encode() if event.created_at else b"",
    }


def decode(fields: Mapping[bytes, bytes]) -> Event:
    """The event of an entry. Raises KeyError or ValueError when it is none of ours."""
    headers = fields[b"headers"]
    return Event(
        id=UUID(fields[b"id"].decode("ascii")),
        name=fields[b"name"].decode(),
        key=fields[b"key"].decode() or None,
        payload_json=fields[b"payload"].decode(),
        headers=json.loads(headers) if headers else {},
        created_at=from_microseconds(int(fields[b"at"])),
    )
