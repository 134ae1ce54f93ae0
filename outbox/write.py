"""`add`, `add_many` and `insert`: events written in the caller's transaction."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from sqlalchemy import JSON, Connection, Engine, Insert, Text, cast, literal
from sqlalchemy import insert as sql_insert
from sqlalchemy.orm import Session, scoped_session
from uuid_utils.compat import uuid7

from outbox import payload as rules
from outbox import session as sessions
from outbox import spans, trace
from outbox.errors import NotYetSupportedError, PayloadError, TargetError
from outbox.event import Event
from outbox.names import check_name
from outbox.schema import event as event_table

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

    Target: TypeAlias = (
        Session | AsyncSession | scoped_session[Any] | async_scoped_session[Any] | Connection | AsyncConnection
    )

OPTIONS = ("_key", "_id", "_delay", "_at", "_headers")
"""What `add` takes besides the payload."""


def add(
    session: Target,
    name_or_model: object,
    /,
    *,
    _key: str | None = None,
    _id: UUID | str | None = None,
    _delay: float | timedelta | None = None,
    _at: datetime | None = None,
    _headers: Mapping[str, str] | None = None,
    **payload: object,
) -> Event:
    """Say that something happened, or should happen, in the transaction of `session`.

    With a session nothing is sent now: the event is written as the last statement of the session's next flush, commits
    with the business data and vanishes with a rollback, also one to a savepoint. With a Core connection it is written
    now.

    Arguments:
        session: a `Session`, `AsyncSession`, `scoped_session`, `async_scoped_session` or Core `Connection`.
        name_or_model: the event's name, with the payload as keyword arguments; or a pydantic model or dataclass
            instance whose class carries the name as `__event__`.
        _key: what the event is about, such as an order's id; 1 to 256 characters. Events of one key keep their order
            when they are written under that row's lock.
        _id: a UUIDv7 to use as the outbox id, when something else must know it beforehand. It is no deduplication: one
            id added twice is two events.
        _delay, _at: not supported yet.
        _headers: strings by name, at most 16 KiB. They win over the `traceparent`, `tracestate` and `correlation_id`
            of the running context.
        payload: JSON values and those that `outbox.payload` converts; at most 256 KiB and 64 levels. A top-level
            keyword may not begin with an underscore.

    Returns a frozen `Event`, usable before and after the commit.

    Raises `PayloadError` before anything is written; the session stays usable. `TargetError` for anything but the
    targets above, `ConfigurationError` when a session with several binds has none for the outbox. The flush raises
    `SchemaError` when the tables are missing.

    >>> event = outbox.add(session, "send_email", user_id=7, template="welcome")
    >>> outbox.add(session, SendEmail(user_id=7, template="welcome"), _key="user-7")
    """
    write = _writer(session)
    made = _event(name_or_model, payload, _key, _id, _delay, _at, _headers)
    write([made])
    return made


def add_many(
    session: Target,
    name: str | type,
    payloads: Iterable[object],
    /,
    *,
    _key: str | Callable[[Any], str | None] | None = None,
    _headers: Mapping[str, str] | None = None,
) -> list[Event]:
    """Add one event per payload, in their order, written as one batch.

    Arguments:
        session: as for `add`.
        name: the name of all events, or a class that carries it as `__event__`.
        payloads: mappings, pydantic models or dataclass instances.
        _key: the key of all events, or a function that gives the key of a payload.
        _headers: as for `add`, for all events.

    Returns the events. Raises what `add` raises; if one payload is refused, none is added.

    >>> outbox.add_many(session, "remind", [{"user_id": id} for id in due], _key=lambda body: str(body["user_id"]))
    """
    write = _writer(session)
    checked = check_name(_carried(name) if isinstance(name, type) else name)
    headers = _merged(_headers)
    made = [
        _made(checked, _as_mapping(each), _key(each) if callable(_key) else _key, None, headers) for each in payloads
    ]
    made = _traced(made, _headers)
    if made:
        write(made)
    return made


def insert(
    name_or_model: object,
    /,
    *,
    _key: str | None = None,
    _id: UUID | str | None = None,
    _delay: float | timedelta | None = None,
    _at: datetime | None = None,
    _headers: Mapping[str, str] | None = None,
    **payload: object,
) -> Insert:
    """The event as a SQLAlchemy INSERT statement, for whatever executes one; arguments and errors are those of `add`.

    >>> await connection.execute(outbox.insert("send_email", user_id=7))
    """
    made = _event(name_or_model, payload, _key, _id, _delay, _at, _headers)
    values = sessions.row(made)
    for column in ("payload", "headers"):
        values[column] = cast(literal(values[column], Text()), JSON)
    return sql_insert(event_table).values(values)


def _event(
    name_or_model: object,
    payload: dict[str, object],
    key: str | None,
    id: UUID | str | None,
    delay: object,
    at: object,
    headers: Mapping[str, str] | None,
) -> Event:
    if delay is not None or at is not None:
        raise NotYetSupportedError("_delay and _at are not supported yet: the event was not added")
    content: object = payload
    if isinstance(name_or_model, str):
        name = name_or_model
        _refuse_options(payload)
    else:
        name = _carried(type(name_or_model))
        if payload:
            raise PayloadError("give a name with keyword arguments or a model, not a model with keyword arguments")
        content = name_or_model
    [made] = _traced([_made(check_name(name), content, key, id, _merged(headers))], headers)
    return made


def _made(
    name: str, content: object, key: str | None, id: UUID | str | None, headers: Mapping[str, str] | None
) -> Event:
    text = rules.encode(content)
    checked = None if key is None else rules.check_key(key)
    outbox_id = uuid7() if id is None else rules.check_id(id)
    if headers:
        return Event(outbox_id, name, text, checked, headers)
    return Event(outbox_id, name, text, checked)


def _merged(given: Mapping[str, str] | None) -> Mapping[str, str] | None:
    headers = trace.headers()
    if given is not None:
        headers |= rules.check_headers(given)
        rules.encode_headers(headers)
    return MappingProxyType(headers) if headers else None


def _traced(made: list[Event], given: Mapping[str, str] | None) -> list[Event]:
    """The events, as children of a span for their creation where OpenTelemetry is at work and the caller named no
    other origin."""
    if not made or (given is not None and "traceparent" in given) or spans.tracer() is None:
        return made
    headers = dict(made[0].headers)
    one = len(made) == 1
    spans.create(headers, made[0].name, message=str(made[0].id) if one else None, count=None if one else len(made))
    rules.encode_headers(headers)
    return [replace(each, headers=MappingProxyType(headers)) for each in made]


def _carried(kind: type) -> str:
    name = getattr(kind, "__event__", None)
    if name is None:
        raise PayloadError(
            f"the event is a name or an instance of a class that carries one: {kind.__name__} has no `__event__`"
        )
    return check_name(name)


def _as_mapping(content: object) -> object:
    if isinstance(content, Mapping):
        _refuse_options(content)
    return content


def _refuse_options(payload: Mapping[Any, object]) -> None:
    for name in payload:
        if isinstance(name, str) and name[:1] == "_":
            from difflib import get_close_matches

            near = get_close_matches(name, OPTIONS, n=1)
            advice = f"did you mean {near[0]}?" if near and name not in OPTIONS else f"there are {', '.join(OPTIONS)}"
            raise PayloadError(
                f"unknown option {name[:40]!a}: {advice} (a payload's keys do not begin with an underscore)"
            )


def _writer(target: object) -> Callable[[list[Event]], None]:
    """What takes the events for this target."""
    session = _sync_session(target)
    if session is not None:
        return lambda events: sessions.put(session, events)
    if isinstance(target, Connection):
        return lambda events: sessions.write(target, events)
    asynchronous = sys.modules.get("sqlalchemy.ext.asyncio")
    if asynchronous is not None and isinstance(target, asynchronous.AsyncConnection):
        raise TargetError(
            "an AsyncConnection must be awaited: use `await connection.execute(outbox.insert(...))`, "
            "or `await connection.run_sync(outbox.add_many, ...)` for many"
        )
    shown = f"the class {target.__name__}" if isinstance(target, type) else type(target).__name__
    raise TargetError(
        f"events are added to a Session, AsyncSession or Core Connection, not to {shown}; {_advice(target)}"
    )


def _advice(target: object) -> str:
    if isinstance(target, Engine) or hasattr(target, "sync_engine"):
        return "use the connection of `engine.begin()`"
    if callable(target):
        return "call it to get a session"
    return "for anything else there is outbox.insert(...)"


def _sync_session(target: object) -> Session | None:
    if isinstance(target, scoped_session):
        target = target()
    if isinstance(target, Session):
        return target
    asynchronous = sys.modules.get("sqlalchemy.ext.asyncio")
    if asynchronous is None:
        return None
    if isinstance(target, asynchronous.async_scoped_session):
        target = target()
    if isinstance(target, asynchronous.AsyncSession):
        found: Session = target.sync_session
        return found
    return None
