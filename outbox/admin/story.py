"""What happened to one event so far, and what it waits for, as values. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from outbox.position import Position

State = Literal["unknown", "scheduled", "waiting", "retrying", "dead", "cancelled", "done"]


@dataclass(frozen=True)
class Wait:
    """What stands between an event and its next step: a code for programs, a sentence for people.

    The codes are `commit`, `unknown_event`, `open_transaction`, `due`, `relay_down`, `relay`, `no_handler`,
    `admission`, `catching_up`, `paused`, `no_worker`, `worker`, `running` and `retry_due`.
    """

    code: str
    text: str


@dataclass(frozen=True)
class Failure:
    """An attempt that failed."""

    attempt: int
    at: datetime
    error: str


@dataclass(frozen=True)
class HandlerStory:
    """The event at one handler. `passed` is for a handler that began after this event, or whose outcome went with the
    retention. `failures` are the last ten; `error` is the last in full, and None once it is done. `result` is what the
    handler returned when it was done: a JSON value, None if it returned nothing that is kept."""

    handler: str
    state: Literal["waiting", "retrying", "dead", "done", "cancelled", "passed"]
    attempts: int = 0
    replays: int = 0
    failures: tuple[Failure, ...] = ()
    error: str | None = None
    result: Any = None
    due_at: datetime | None = None
    updated_at: datetime | None = None
    waits_for: Wait | None = None


@dataclass(frozen=True)
class Moment:
    """A step of the time line. `at` is None when the time is not known."""

    at: datetime | None
    what: str
    handler: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class Story:
    """One event from `outbox.add` to its outcome at every handler. `at` is the database's clock when it was asked.

    `waits_for` is what the event itself waits for; what it waits for at a handler stands there. `position` is where it
    is in the log, once it is in a tick.

    >>> outbox.status(session, event.id).state
    'done'
    """

    id: UUID
    at: datetime
    state: State
    name: str | None = None
    key: str | None = None
    position: Position | None = None
    handlers: tuple[HandlerStory, ...] = ()
    moments: tuple[Moment, ...] = ()
    waits_for: Wait | None = None

    @property
    def waits(self) -> tuple[Wait, ...]:
        """Everything it waits for: nothing when it is done, or dead, everywhere."""
        own = () if self.waits_for is None else (self.waits_for,)
        return own + tuple(each.waits_for for each in self.handlers if each.waits_for is not None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values: ids and the position as text, times as they are. For an endpoint's answer."""
        found = asdict(self)
        return {**found, "id": str(self.id), "position": None if self.position is None else str(self.position)}
