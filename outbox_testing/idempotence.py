"""Whether a handler that runs again changes what it did."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from copy import deepcopy
from pprint import pformat
from typing import Any

import psycopg
from sqlalchemy import Connection

from outbox.errors import ConfigurationError
from outbox.settings import Settings
from outbox_testing import inline
from workers.app import App
from workers.batch_execution import write_outcomes
from workers.errors import SupersededError
from workers.handler import Handler
from workers.job import Job
from workers.outcome import DONE, Done, Outcome
from workers.transaction import Write, write_outcome


async def assert_idempotent(
    app: App,
    handler: str,
    payload: object = None,
    /,
    *,
    state: Callable[[], Any] | Callable[[], Awaitable[Any]],
    database: Settings | str | None = None,
    resources: Mapping[Any, Any] | None = None,
) -> None:
    """AssertionError when a handler that gets one event more than once does more than once what matters.

    `state` reads what matters, and is called after each run: a query, the mails that were sent. It may be a coroutine
    function. What it returns is compared by `==`.

    A transactional handler is run four times on the same event. Twice it dies before the COMMIT: all is written but the
    delivery's row, then the transaction is broken off. The second time must change nothing: what does was done outside
    of the transaction. Then it runs to its end, but the reply to its COMMIT is lost: the worker must find out that it
    came through, and not run it again. And once more, as by another worker that had the event too: that must change
    nothing either. A plain handler has nothing that could be broken off: a death leaves what it did, and its second
    run, which is what follows, must change nothing.

    What two workers do that run an event at the same moment shows `run_twice`.

    Arguments otherwise as for `run`. A run that should work and does not is an AssertionError with its outcome.

    >>> await assert_idempotent(app, "send_email", {"user_id": 7}, state=lambda: list(mailbox), database=url)
    """
    found = inline.find(app, handler)
    if found.at_most_once:
        raise ConfigurationError(f"handler {found.name!r} has at_most_once=True: it never gets an event again")
    event, where = inline.as_event(found, payload), inline.settings(database)

    async def attempt(write: Write | None = None) -> Outcome:
        return await inline.perform(app, found, event, where, resources=resources, write=write)

    if found.transactional:
        await _broken_off(found.name, attempt)
        first = await _read(state)
        await _broken_off(found.name, attempt)
        _compare(
            first,
            await _read(state),
            f"handler {found.name!r} is not idempotent: after a death before the COMMIT the next attempt "
            "repeated what it does outside of its transaction (pass the event's id on as idempotency key)",
        )
        outcome = await _unanswered(found, attempt)
    else:
        outcome = await attempt()
    if not isinstance(outcome, Done):
        raise AssertionError(f"handler {found.name!r} did not work: {outcome}")
    first = await _read(state)
    try:
        outcome = await attempt()
    except SupersededError:
        outcome = DONE
    _compare(first, await _read(state), f"handler {found.name!r} is not idempotent: the second run changed the state")
    if not isinstance(outcome, Done):
        raise AssertionError(f"handler {found.name!r} did not work when the same event came again: {outcome}")


def assert_idempotent_sync(
    app: App,
    handler: str,
    payload: object = None,
    /,
    *,
    state: Callable[[], Any],
    database: Settings | str | None = None,
    resources: Mapping[Any, Any] | None = None,
) -> None:
    """`assert_idempotent` for tests without an event loop.

    >>> assert_idempotent_sync(app, "send_email", {"user_id": 7}, state=lambda: list(mailbox), database=url)
    """
    asyncio.run(assert_idempotent(app, handler, payload, state=state, database=database, resources=resources))


class _Death(BaseException):
    """What stands for the end of the process; nothing catches it by accident."""


async def _broken_off(name: str, attempt: Callable[[Write], Awaitable[Outcome]]) -> None:
    """Run the handler up to its COMMIT, and break the transaction off."""
    reached = False

    def die(connection: Connection, job: Job, schema: str) -> None:
        nonlocal reached
        reached = True
        raise _Death

    outcome = await attempt(die)
    if not reached:
        raise AssertionError(f"handler {name!r} did not work: {outcome}")


async def _unanswered(handler: Handler, attempt: Callable[[Write], Awaitable[Outcome]]) -> Outcome:
    """Run the handler to its end. Its COMMIT comes through, and the reply to it does not."""
    record = write_outcome if handler.batch is None else write_outcomes

    def commit(connection: Connection, job: Job, schema: str) -> None:
        record(connection, job, schema)
        connection.connection.commit()
        raise psycopg.OperationalError("the reply to COMMIT is lost")

    try:
        return await attempt(commit)
    except SupersededError:
        # Of a batch its own row is found as if it were another worker's.
        return DONE


async def _read(state: Callable[[], Any]) -> Any:
    value = state()
    if inspect.isawaitable(value):
        value = await value
    # It may be the very list that the next run appends to.
    return deepcopy(value)


def _compare(before: Any, after: Any, problem: str) -> None:
    if before != after:
        raise AssertionError(f"{problem}\n  before: {_shown(before)}\n  after:  {_shown(after)}")


def _shown(value: Any) -> str:
    return pformat(value, width=100).replace("\n", "\n          ")
