"""The handlers: each kind of handler there is, with an effect that shows how often it took place."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import outbox
import workers
from tests.chaos.history import History

EFFECT = text("INSERT INTO effect (handler, event_id, sha, follow) VALUES (:handler, :event_id, :sha, :follow)")
OPTIONS: dict[str, Any] = {
    "backoff": workers.Backoff(initial=0.05, maximum=1.0, jitter=0.2),
    # Only what is doomed, or killed its worker three times, may end as a dead letter.
    "max_attempts": 100_000,
    "timeout": 4.0,
}

TRANSACTIONAL = frozenset({"book", "charge", "ship", "gather", "refuse", "press", "audit", "later"})
"""Handlers whose effects are rows of their own transaction."""

PLAIN = frozenset({"notify", "weigh", "stamp"})
"""Handlers whose effects are runs: at least one."""

ONCE = frozenset({"once"})
"""Handlers whose effects are runs: at most one."""

ANSWERING = frozenset({"press", "weigh", "stamp"})
"""Handlers that return what the payload is compared by."""

HISTORY = "CHAOS_HISTORY"
"""The environment variable that tells a child process of a worker its history."""

_history: History | None = None
_snoozed: set[str] = set()
_slowness = 1.0


def tell(history: History, slowness: float) -> None:
    """Let handlers write into this history from now on, and take so many times as long."""
    global _history, _slowness
    _history, _slowness = history, slowness


def sha(payload_json: str) -> str:
    """What a payload is compared by: its text, to the byte."""
    return hashlib.sha256(payload_json.encode()).hexdigest()[:16]


def _told() -> History:
    global _history
    if _history is None:
        _history = History(Path(os.environ[HISTORY]))
    return _history


@contextmanager
def run(handler: str, event: outbox.Event, attempt: int = 0) -> Iterator[None]:
    """One run, in the history from its beginning to its end."""
    history = _told()
    facts = {"handler": handler, "event": str(event.id), "attempt": attempt}
    history.say("run", sha=sha(event.payload_json), **facts)
    try:
        yield
    except BaseException as error:
        history.say("run failed", error=type(error).__name__, **facts)
        raise
    history.say("ran", **facts)


def effect(handler: str, event: outbox.Event, follow: outbox.Event | None = None) -> tuple[Any, dict[str, Any]]:
    """The statement of a handler's effect."""
    facts = {"handler": handler, "event_id": event.id, "sha": sha(event.payload_json)}
    return EFFECT, facts | {"follow": None if follow is None else follow.id}


def lasts(event: outbox.Event) -> float:
    """Seconds that a run of this event takes: mostly a few milliseconds, sometimes half a second."""
    drawn = event.id.int % 1000
    return 0.5 if drawn < 10 else min(0.5, _slowness * drawn / 80_000)


async def book(n: int, session: AsyncSession, event: workers.Event, context: workers.Context) -> None:
    """Transactional, with a follow-up event."""
    with run("book", event, context.attempt):
        await asyncio.sleep(lasts(event))
        follow = outbox.add(session, "booked", _key=event.key, n=n, order=str(event.id))
        await session.execute(*effect("book", event, follow))
        await asyncio.sleep(lasts(event) / 2)


def charge(n: int, session: Session, event: workers.Event, context: workers.Context) -> None:
    """Transactional in a thread; some first attempts fail after they have written."""
    with run("charge", event, context.attempt):
        session.execute(*effect("charge", event))
        if event.id.int % 5 == 0 and context.attempt == 1:
            raise RuntimeError("the bank is closed")


async def notify(event: workers.Event, context: workers.Context) -> None:
    """Plain: at least once."""
    with run("notify", event, context.attempt):
        await asyncio.sleep(lasts(event))


async def ship(n: int, order: str, session: AsyncSession, event: workers.Event, context: workers.Context) -> None:
    """The follow-up's handler."""
    with run("ship", event, context.attempt):
        await session.execute(*effect("ship", event))


async def gather(events: list[outbox.Event], session: AsyncSession) -> None:
    """Transactional, several events in one transaction."""
    for event in events:
        with run("gather", event):
            await session.execute(*effect("gather", event))
    await asyncio.sleep(max(map(lasts, events)))


async def once(event: workers.Event) -> None:
    """Plain, and at most once."""
    with run("once", event):
        await asyncio.sleep(lasts(event))


async def refuse(event: workers.Event, session: AsyncSession, context: workers.Context) -> None:
    """Rejects what is doomed, after it has written; puts off what is moody."""
    with run("refuse", event, context.attempt):
        await session.execute(*effect("refuse", event))
        payload = event.payload
        if payload.get("doomed"):
            raise workers.Reject("doomed")
        if payload.get("moody") and context.attempt <= 2:
            raise workers.RetryLater(0.05)


def hangs(event: outbox.Event, attempt: int) -> bool:
    """Whether this run is to last beyond its timeout: some first ones."""
    return attempt == 1 and event.id.int % 15 == 1


async def press(event: workers.Event, session: AsyncSession, context: workers.Context) -> str:
    """Transactional, with savepoints: one that is kept, one that is rolled back. Some runs meet their timeout after."""
    with run("press", event, context.attempt):
        async with session.begin_nested():
            await session.execute(*effect("press", event))
        undone = await session.begin_nested()
        await session.execute(*effect("press", event))
        await undone.rollback()
        if hangs(event, context.attempt):
            await asyncio.sleep(60)
    return sha(event.payload_json)


def weigh(event: workers.Event, context: workers.Context) -> str:
    """Plain in a thread. Some runs put themselves off, some meet their timeout."""
    with run("weigh", event, context.attempt):
        if event.id.int % 9 == 0 and str(event.id) not in _snoozed:
            _snoozed.add(str(event.id))
            raise workers.Snooze(0.05)
        while hangs(event, context.attempt):
            # An exception reaches a thread between two steps of Python.
            time.sleep(0.01)
    return sha(event.payload_json)


def stamp(event: workers.Event, context: workers.Context) -> str:
    """Plain in a child process."""
    with run("stamp", event, context.attempt):
        while hangs(event, context.attempt):
            time.sleep(0.01)
    return sha(event.payload_json)


async def audit(event: workers.Event, session: AsyncSession, context: workers.Context) -> None:
    """A later handler of a known event: begins where it was registered."""
    with run("audit", event, context.attempt):
        await session.execute(*effect("audit", event))


async def later(event: workers.Event, session: AsyncSession, context: workers.Context) -> None:
    """The first handler of an event that was added long before: begins with all that there is."""
    with run("later", event, context.attempt):
        await session.execute(*effect("later", event))


LATEST = 2
"""The version that handles most."""


def app(version: int, *, children: bool = False) -> workers.App:
    """The first version of the service, or the second, which handles more. `children`: also one in child processes."""
    made = workers.App()
    for function, event_name in ((book, "order"), (charge, "order"), (notify, "order"), (ship, "booked")):
        made.handler(event_name, **OPTIONS)(function)
    made.handler("note", batch=8, **OPTIONS)(gather)
    made.handler("note", at_most_once=True, timeout=4.0)(once)
    made.handler("note", **OPTIONS)(refuse)
    made.handler("note", **OPTIONS | {"timeout": 1.0})(press)
    made.handler("note", **OPTIONS | {"timeout": 1.0})(weigh)
    if children:
        made.handler("booked", pool="process", concurrency=1, **OPTIONS | {"timeout": 1.0})(stamp)
    if version > 1:
        made.handler("order", **OPTIONS)(audit)
        made.handler("later", **OPTIONS)(later)
    return made
