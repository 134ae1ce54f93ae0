"""Help for users' tests: which events did this transaction add?

Works on real PostgreSQL, like the code under test. With an `AsyncSession` or `AsyncConnection` the same functions are
awaited. What needs workers or servers (running a handler, draining, fixtures) is in `outbox_testing`, and is also found
here by its name: `outbox.testing.drain`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

from sqlalchemy import Connection, Text, cast, func, select
from sqlalchemy.orm import Session, scoped_session

from outbox.event import Event
from outbox.payload import encode
from outbox.schema import event
from outbox.session import connection_of, pending

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

    AsyncTarget: TypeAlias = AsyncSession | async_scoped_session[Any] | AsyncConnection

Target: TypeAlias = Session | scoped_session[Any] | Connection

T = TypeVar("T")

MOST_LISTED = 20
"""Events that a failed assertion shows."""

MOST_SHOWN = 200
"""Characters that it shows of each payload."""


@overload
def added(session: Target, *, committed: bool = False) -> list[Event]: ...
@overload
def added(session: AsyncTarget, *, committed: bool = False) -> Awaitable[list[Event]]: ...
def added(session: Target | AsyncTarget, *, committed: bool = False) -> list[Event] | Awaitable[list[Event]]:
    """The events of the running transaction, in order: those already written and those that wait for the next flush.

    Nothing is flushed. A test that wraps the code under test in an outer transaction (`join_transaction_mode=
    "create_savepoint"`) sees its "committed" events too. `committed=True` gives every event that is visible.

    >>> signup(session, "a@example.org")
    >>> [event.name for event in outbox.testing.added(session)]
    ['send_email']
    >>> await outbox.testing.added(async_session)
    """
    return _on(session, lambda target: _added(target, committed))


@overload
def assert_added(session: Target, name: str, /, **payload: object) -> Event: ...
@overload
def assert_added(session: AsyncTarget, name: str, /, **payload: object) -> Awaitable[Event]: ...
def assert_added(session: Target | AsyncTarget, name: str, /, **payload: object) -> Event | Awaitable[Event]:
    """The one event of this name in the running transaction whose payload has these values, given as to `outbox.add`;
    others may be there. AssertionError, with a list of what was added, when there is none or more than one.

    >>> outbox.testing.assert_added(session, "send_email", user_id=7).key
    >>> await outbox.testing.assert_added(async_session, "send_email", user_id=7)
    """
    return _on(session, lambda target: _one(_added(target), name, payload))


@overload
def assert_not_added(session: Target, name: str, /, **payload: object) -> None: ...
@overload
def assert_not_added(session: AsyncTarget, name: str, /, **payload: object) -> Awaitable[None]: ...
def assert_not_added(session: Target | AsyncTarget, name: str, /, **payload: object) -> Awaitable[None] | None:
    """AssertionError when the running transaction added an event of this name whose payload has these values.

    >>> outbox.testing.assert_not_added(session, "send_email", user_id=7)
    >>> await outbox.testing.assert_not_added(async_session, "send_email")
    """
    return _on(session, lambda target: _none(_added(target), name, payload))


def _on(session: Target | AsyncTarget, ask: Callable[[Target], T]) -> T | Awaitable[T]:
    """What `ask` says of a session; for an asynchronous one, something to await."""
    asynchronous = sys.modules.get("sqlalchemy.ext.asyncio")
    if asynchronous is not None:
        if isinstance(session, asynchronous.async_scoped_session):
            session = session()
        if isinstance(session, asynchronous.AsyncSession | asynchronous.AsyncConnection):
            answer: Awaitable[T] = session.run_sync(ask)
            return answer
    if isinstance(session, scoped_session):
        session = session()
    if not isinstance(session, Session | Connection):
        raise TypeError(f"ask about a Session, AsyncSession or Core connection, not about {type(session).__name__}")
    return ask(session)


def _added(session: Target, committed: bool = False) -> list[Event]:
    waiting = pending(session) if isinstance(session, Session) else []
    query = select(
        event.c.id,
        event.c.name,
        cast(event.c.payload, Text),
        event.c.key,
        cast(event.c.headers, Text),
        event.c.created_at,
    ).order_by(event.c.seq)
    if not committed:
        query = query.where(event.c.xid == func.pg_current_xact_id_if_assigned())
    connection = connection_of(session) if isinstance(session, Session) else session
    assert isinstance(connection, Connection)
    return [
        Event(id, name, payload, key, json.loads(headers) if headers else {}, created_at)
        for id, name, payload, key, headers, created_at in connection.execute(query)
    ] + waiting


def _one(events: list[Event], name: str, payload: dict[str, object]) -> Event:
    found = _matching(events, name, payload)
    if len(found) != 1:
        raise AssertionError(
            f"expected one event {_asked(name, payload)}, found {len(found)}; added in this transaction:"
            f"{_listed(events)}"
        )
    return found[0]


def _none(events: list[Event], name: str, payload: dict[str, object]) -> None:
    if found := _matching(events, name, payload):
        raise AssertionError(
            f"expected no event {_asked(name, payload)}, found {len(found)}; added in this transaction:"
            f"{_listed(events)}"
        )


def _matching(events: list[Event], name: str, payload: dict[str, object]) -> list[Event]:
    stored = json.loads(encode(payload))
    return [each for each in events if each.name == name and _has(each.payload, stored)]


def _has(payload: Any, wanted: dict[str, object]) -> bool:
    if not wanted:
        return True
    return isinstance(payload, dict) and all(key in payload and payload[key] == wanted[key] for key in wanted)


def _asked(name: str, payload: dict[str, object]) -> str:
    return f"{name!r} with {payload!r}" if payload else repr(name)


def _listed(events: list[Event]) -> str:
    if not events:
        return " nothing"
    lines = [f"\n  {each.name} {_shortened(each.payload_json)}" for each in events[:MOST_LISTED]]
    if len(events) > MOST_LISTED:
        lines.append(f"\n  … and {len(events) - MOST_LISTED} more")
    return "".join(lines)


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1]}…"


if not TYPE_CHECKING:
    # Who looks for them here finds them. Types are told the place where they are.
    def __getattr__(name: str) -> Any:
        if name in ("Drained", "DrainTimeoutError") or name.startswith(("drain", "run", "assert_idempotent")):
            return getattr(importlib.import_module("outbox_testing"), name)
        raise AttributeError(f"module 'outbox.testing' has no attribute {name!r}")
