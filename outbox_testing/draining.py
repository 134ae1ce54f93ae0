"""Everything that was added, run to its end by a relay and a worker in the test's own process, on real servers."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Self

import psycopg

from outbox.errors import OutboxError
from outbox.names import check_schema
from outbox.settings import Settings
from relay.service import Relay
from workers.app import App
from workers.once import Mark
from workers.worker import Worker

LOOK_EVERY = 0.02
"""Seconds between two looks at what is open."""

GRACE = 1.0
"""Seconds that a run gets to end when the time is up."""

MOST_NAMED = 20
"""Open deliveries that an error names."""


class DrainTimeoutError(OutboxError, TimeoutError):
    """Not everything came to its end in time. The message names what is open."""


@dataclass(frozen=True, slots=True)
class Drained:
    """What came to its end, counted by handler: `done`, `dead`, and attempts beyond the first (`retried`).

    >>> drained.done == {"send_welcome": 1, "award_points": 1}
    True
    >>> drained.dead["send_welcome"], drained.retried.total()
    (0, 0)
    """

    done: Counter[str]
    dead: Counter[str]
    retried: Counter[str]


async def drain(app: App, settings: Settings, *, timeout: float = 30.0, retry_at_once: bool = False) -> Drained:
    """Run a relay and a worker until every event that was added is done or dead at each of the app's handlers.

    The relay runs in a thread, the worker in the running event loop. Events that handlers add meanwhile are waited for;
    events that no handler of the app subscribes to, and those from before a handler's beginning, are not.

    Arguments:
        app: the application whose handlers are run.
        settings: where the servers are; the fixture `outbox_settings` has a database and a prefix of the test's own.
        timeout: seconds until it is given up.
        retry_at_once: retries do not wait for their backoff, `RetryLater` or `Snooze`.

    Returns what came to its end meanwhile. Raises `DrainTimeoutError`, whose message names what is open, and what a
    relay or worker refuses to run for, or waits for somebody to mend.

    >>> drained = await drain(app, outbox_settings)
    >>> assert drained.done["send_email"] == 1 and not drained.dead
    """
    ledger = _Ledger(settings, sorted(app.handlers))
    relay = Relay(settings)
    worker = Worker(app, settings, grace=GRACE)
    limit = asyncio.timeout(timeout)
    started = False
    try:
        async with limit, ledger:
            # A thread of its own: those of the loop are the handlers'.
            with ThreadPoolExecutor(1, "drain: relay") as thread:
                relaying = asyncio.get_running_loop().run_in_executor(thread, relay.run)
                working = asyncio.create_task(worker.run())
                try:
                    await _until_settled(ledger, relay, worker, {relaying, working}, retry_at_once)
                finally:
                    started = worker.started
                    relay.stop()
                    await _end(worker, working)
                    await asyncio.wait({relaying})
                    relaying.exception()
            return await ledger.summary()
    except TimeoutError:
        if not limit.expired():
            raise
        if not started:
            raise DrainTimeoutError(
                f"the worker did not start within {timeout:g} s: do PostgreSQL and Redis answer?"
            ) from None
        raise DrainTimeoutError(
            f"not everything came to its end within {timeout:g} s; open are:{await ledger.open_lines()}"
        ) from None


def drain_sync(app: App, settings: Settings, *, timeout: float = 30.0, retry_at_once: bool = False) -> Drained:
    """`drain` for tests without an event loop.

    >>> assert drain_sync(app, outbox_settings).done["send_email"] == 1
    """
    return asyncio.run(drain(app, settings, timeout=timeout, retry_at_once=retry_at_once))


async def _until_settled(
    ledger: _Ledger, relay: Relay, worker: Worker, services: set[asyncio.Future[Any]], retry_at_once: bool
) -> None:
    while not worker.started or await ledger.open(1):
        if retry_at_once and worker.started and await ledger.hasten():
            await worker.refresh()
        if (why := worker.refused or relay.refused) is not None:
            raise OutboxError(why)
        ended, _ = await asyncio.wait(services, timeout=LOOK_EVERY, return_when=asyncio.FIRST_COMPLETED)
        for service in ended:
            service.result()
            raise OutboxError("the relay or the worker of this drain() was stopped")


async def _end(worker: Worker, working: asyncio.Task[None]) -> None:
    worker.request_stop()
    if not worker.started:
        # It waits for a server that does not answer, and would do so for ever.
        working.cancel()
    await asyncio.wait({working})
    await worker.stop()
    if not working.cancelled():
        working.exception()


class _Ledger:
    """What PostgreSQL says about some handlers' deliveries since it was opened."""

    def __init__(self, settings: Settings, handlers: list[str]) -> None:
        self._url = settings.libpq_url()
        self._schema = settings.schema_name
        self._handlers = handlers

    async def __aenter__(self) -> Self:
        self._connection = await self._connect()
        cursor = await self._connection.execute("SELECT clock_timestamp()")
        [(self._began,)] = await cursor.fetchall()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(self._url, autocommit=True, connect_timeout=5)

    async def open(self, most: int) -> list[Any]:
        """At most so many deliveries that have not come to their end, the oldest first."""
        asked = {"handlers": self._handlers, "most": most, "begun": Mark("%").error, "since": self._began}
        found = await self._connection.execute(_statement("open", self._schema), asked)
        return await found.fetchall()

    async def hasten(self) -> bool:
        """Make retries due now. Whether there were any."""
        changed = await self._connection.execute(_statement("hasten", self._schema), {"handlers": self._handlers})
        return changed.rowcount > 0

    async def summary(self) -> Drained:
        """What came to its end since it was opened."""
        asked = {"handlers": self._handlers, "since": self._began}
        found = await self._connection.execute(_statement("drained", self._schema), asked)
        drained = Drained(Counter(), Counter(), Counter())
        async for handler, state, count, retried in found:
            (drained.done if state == "done" else drained.dead)[handler] = count
            if retried:
                drained.retried[handler] += int(retried)
        return drained

    async def open_lines(self) -> str:
        """What is open, a line each. On a connection of its own: the other was interrupted."""
        try:
            async with asyncio.timeout(5):
                self._connection = await self._connect()
                try:
                    rows = await self.open(MOST_NAMED + 1)
                finally:
                    await self._connection.close()
        except (psycopg.Error, OSError, TimeoutError):
            return " unknown, PostgreSQL does not answer"
        lines = [f"\n  {_described(*row)}" for row in rows[:MOST_NAMED]]
        if len(rows) > MOST_NAMED:
            lines.append("\n  … and more")
        return "".join(lines) or " none any more"


@cache
def _statement(name: str, schema: str) -> bytes:
    text = (files(__package__) / "sql" / f"{name}.sql").read_text("utf-8")
    return text.replace("{schema}", check_schema(schema)).encode()


def _described(
    handler: str, name: str, event_id: str, paused: bool, attempts: int | None, running: bool, due: float, error: str
) -> str:
    """One open delivery for people."""
    what = f"{handler}: event {name} {event_id}"
    if paused:
        return f"{what}, the handler is paused"
    if attempts is None:
        return f"{what}, without an outcome: not published yet, or its first attempt runs"
    after = f" after {attempts} failed attempt{'s' * (attempts != 1)}"
    when = "runs again" if running else f"is retried in {max(0.0, due):.1f} s"
    return f"{what}, {when}{after}: {error}"
