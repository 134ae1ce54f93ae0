"""One delivery in this worker's hands: a stream entry not acknowledged yet, or a leased retry."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any
from uuid import UUID

from outbox import trace
from outbox.entry import from_microseconds
from outbox.event import Event
from workers.outcome import DONE

if TYPE_CHECKING:
    from workers.lane import Lane, Source

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_ORDER = [b"id", b"name", b"key", b"payload", b"headers", b"at"]
_LATEST = 250_000_000_000_000_000
"""Microseconds since 1970 that PostgreSQL's timestamps can surely hold (the year 9892)."""


class Job:
    """Event and bookkeeping of one attempt. Texts stay as they came until somebody asks for more."""

    __slots__ = (
        "at", "attempt", "cause", "claimed", "closed", "crashes", "deadline", "done", "entry_id", "event_id", "headers",
        "key", "lane", "lease", "name", "payload", "source", "task", "ticket", "twins",
    )  # fmt: skip

    def __init__(self, lane: Lane, event_id: str, at: int, name: str, key: str, payload: str, headers: str) -> None:
        self.lane = lane
        self.event_id = event_id
        self.at = at
        self.name = name
        self.key = key
        self.payload = payload
        self.headers = headers
        self.attempt = 1
        self.crashes = 0
        self.claimed = False
        """A retry, from PostgreSQL; not an entry of a stream."""
        self.lease: str | None = None
        self.source: Source | None = None
        self.entry_id = b""
        self.task: asyncio.Task[None] | None = None
        self.ticket: Any = None
        self.deadline = 0.0
        self.cause: str | None = None
        """Why the worker ends this run: timeout, lost or stop."""
        self.closed = False
        """The outcome is decided; whatever the run still does counts no more."""
        self.done = DONE
        """What it comes to if the run works: with the handler's result, if that left one."""
        self.twins: list[tuple[Source, bytes]] | None = None
        """Other entries of the same event, acknowledged together with this one."""

    def entries(self) -> list[tuple[Source, bytes]]:
        """The stream entries that are acknowledged when this is over: none for a retry that was never read here."""
        own = [] if self.source is None else [(self.source, self.entry_id)]
        return own + self.twins if self.twins else own

    def facts(self) -> dict[str, Any]:
        """What a line of log says of it, also outside of its run."""
        found = {"event_id": self.event_id, "attempt": self.attempt}
        if (correlation := trace.correlation_of(self.headers)) is not None:
            found["correlation_id"] = correlation
        return found

    def event(self) -> Event:
        """The event as a handler sees it."""
        return Event(
            id=UUID(self.event_id),
            name=self.name,
            payload_json=self.payload,
            key=self.key or None,
            headers=json.loads(self.headers) if self.headers else {},
            created_at=from_microseconds(self.at),
        )


def from_entry(lane: Lane, source: Source, entry_id: bytes, fields: list[bytes]) -> Job | None:
    """The job of a stream entry as Redis returns it, or None when the entry is none of ours."""
    try:
        if fields[0::2] != _ORDER:
            named = dict(zip(fields[0::2], fields[1::2], strict=True))
            fields = [part for field in _ORDER for part in (field, named[field])]
        event_id = fields[1].decode()
        at = int(fields[11])
        if not _ID.match(event_id) or not 0 <= at <= _LATEST:
            return None
        if b"\0" in b"".join(fields):
            return None
        job = Job(lane, event_id, at, fields[3].decode(), fields[5].decode(), fields[7].decode(), fields[9].decode())
    except (KeyError, ValueError, IndexError, TypeError):
        return None
    job.source = source
    job.entry_id = entry_id
    return job
