"""One event at two workers at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from outbox.errors import ConfigurationError
from outbox.settings import Settings
from outbox_testing import inline
from workers.app import App
from workers.errors import SupersededError
from workers.outcome import Outcome


async def run_twice(
    app: App,
    handler: str,
    payload: object = None,
    /,
    *,
    database: Settings | str | None = None,
    resources: Mapping[Any, Any] | None = None,
) -> tuple[Outcome | None, Outcome | None]:
    """Run a handler on one event in two workers at once, as when one of them was taken for dead and goes on.

    Returns how each of the two runs ended; None for one that was rolled back because the other had recorded an outcome
    first. Of a transactional handler that works at least one ends so, and what it wrote is there once. What it did
    outside of its transaction, and all that a plain handler does, is done by both: a test that looks at it finds out
    whether "look, and if it is not there, do it" is safe.

    Arguments as for `run`. Raises `ConfigurationError` also for a handler with `at_most_once=True`, which never is run
    by two.

    >>> outcomes = await run_twice(app, "send_email", {"user_id": 7}, database=url)
    >>> assert outcomes.count(None) == 1 and len(mailbox) == 1
    """
    found = inline.find(app, handler)
    if found.at_most_once:
        raise ConfigurationError(f"handler {found.name!r} has at_most_once=True: two workers never run the same event")
    event, where = inline.as_event(found, payload), inline.settings(database)

    async def attempt() -> Outcome | None:
        try:
            return await inline.perform(app, found, event, where, resources=resources)
        except SupersededError:
            return None

    one, other = await asyncio.gather(attempt(), attempt())
    return one, other


def run_twice_sync(
    app: App,
    handler: str,
    payload: object = None,
    /,
    *,
    database: Settings | str | None = None,
    resources: Mapping[Any, Any] | None = None,
) -> tuple[Outcome | None, Outcome | None]:
    """`run_twice` for tests without an event loop.

    >>> assert run_twice_sync(app, "send_email", {"user_id": 7}, database=url).count(None) == 1
    """
    return asyncio.run(run_twice(app, handler, payload, database=database, resources=resources))
