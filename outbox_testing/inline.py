"""One handler run on one event in the test's own process, without Redis, as a worker would run it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import structlog
from uuid_utils.compat import uuid7

from outbox.entry import to_microseconds
from outbox.errors import ConfigurationError
from outbox.event import Event
from outbox.payload import encode, encode_headers
from outbox.settings import Settings
from workers.app import App
from workers.batch import Batch
from workers.batch_execution import BatchExecution
from workers.batch_lane import BatchLane
from workers.database import Database
from workers.delivery import Recorder
from workers.errors import SupersededError
from workers.execution import Execution
from workers.handler import Handler
from workers.job import Job
from workers.lane import ABANDON_AFTER, Lane
from workers.lifespan import Lifespan
from workers.outcome import Outcome
from workers.resources import shown
from workers.transaction import SUPERSEDED, Write


async def run(
    app: App,
    handler: str,
    payload: object = None,
    /,
    *,
    database: Settings | str | None = None,
    attempt: int = 1,
    resources: Mapping[Any, Any] | None = None,
) -> Outcome:
    """Run a handler on an event, as a worker would, and return the attempt's outcome.

    What the worker does is done: the payload is validated and bound, parameters are injected, the handler is called
    where it belongs (event loop or thread) under its timeout, and the end is judged. A transactional handler has its
    transaction, which commits with the delivery's row. Nothing is published and Redis is not needed: events that the
    handler adds are rows, and `outbox.testing.added` finds them. The outcome of a failure is returned, not written. A
    handler with `batch=` gets a list of this one event.

    Arguments:
        app: the application that has the handler.
        handler: the handler's name, or that of an event that has one handler.
        payload: what `outbox.add` would take as keywords (a mapping, pydantic model or dataclass instance), or an
            `Event`, to be given the same one again.
        database: the migrated database of a transactional handler, as a URL or as settings.
        attempt: which attempt it is; at the handler's `max_attempts` a failure is `Dead`.
        resources: values by their types, to stand in for what the app's lifespan gives; it is not entered then.

    Returns `Done`, with the result that a worker would keep, `Retry`, `Snoozed` or `Dead`. Raises `ConfigurationError`
    when there is no such handler or no database, `PayloadError` for what could not be added, and `SupersededError` when
    a transactional handler's event has an outcome already: what this run wrote is rolled back then.

    >>> assert await run(app, "send_email", {"user_id": 7}, database=url) == Done()
    """
    found = find(app, handler)
    return await perform(app, found, as_event(found, payload), settings(database), attempt=attempt, resources=resources)


def run_sync(
    app: App,
    handler: str,
    payload: object = None,
    /,
    *,
    database: Settings | str | None = None,
    attempt: int = 1,
    resources: Mapping[Any, Any] | None = None,
) -> Outcome:
    """`run` for tests without an event loop.

    >>> assert run_sync(app, "send_email", {"user_id": 7}) == Done()
    """
    return asyncio.run(run(app, handler, payload, database=database, attempt=attempt, resources=resources))


def find(app: App, name: str) -> Handler:
    """The handler of this name, or the only one of the event of this name. Raises `ConfigurationError`."""
    for full in (name, f"{app.prefix}.{name}"):
        if full in app.handlers:
            return app.handlers[full]
    listening = [each for each in app.handlers.values() if each.event_name == name]
    if len(listening) == 1:
        return listening[0]
    if listening:
        several = " and ".join(repr(each.name) for each in listening)
        raise ConfigurationError(f"event {name!r} has the handlers {several}: say which one")
    known = ", ".join(sorted(app.handlers)) or "none"
    raise ConfigurationError(f"the app has no handler {name!r}, and none of an event of this name; it has {known}")


def as_event(handler: Handler, payload: object) -> Event:
    """The event to run a handler on: the one that is given, or a new one with this payload."""
    if isinstance(payload, Event):
        return payload
    return Event(uuid7(), handler.event_name, encode({} if payload is None else payload))


def settings(database: Settings | str | None) -> Settings | None:
    """Settings for the database that a helper was given; its environment has no say in which that is."""
    if database is None or isinstance(database, Settings):
        return database
    return Settings(database_url=database, relay_database_url=None, _env_file=None)


async def perform(
    app: App,
    handler: Handler,
    event: Event,
    where: Settings | None,
    *,
    attempt: int = 1,
    resources: Mapping[Any, Any] | None = None,
    write: Write | None = None,
) -> Outcome:
    """One attempt of a handler, with the app's resources or these. `write` is called at the end of a transactional
    handler's transaction, in place of what writes the delivery's row."""
    if handler.transactional and where is None:
        raise ConfigurationError(f"handler {handler.name!r} is transactional: pass database=, a URL or settings")
    stand_in = where or Settings(database_url=None, _env_file=None)
    log = structlog.get_logger()
    # Used to look an outcome up when the reply to a COMMIT was lost; it connects when it is asked.
    database = Database(stand_in.libpq_url() if where else "", stand_in.schema_name, asyncio.Event(), log)
    try:
        async with _resources(app, handler, resources) as given:
            parts: dict[str, Any] = {} if write is None else {"_write": staticmethod(write)}
            kind = type("Inline", (Execution if handler.batch is None else BatchExecution,), parts)
            middleware = app.middlewares if handler.batch is None else app.batch_middlewares
            execution = kind(handler, stand_in, database, 1, log, given, middleware)
            return await _attempt(handler, execution, event, attempt, log)
    finally:
        await database.close()


@asynccontextmanager
async def _resources(app: App, handler: Handler, instead: Mapping[Any, Any] | None) -> AsyncIterator[Mapping[Any, Any]]:
    """What the app's lifespan gives while it lasts, or what is given in its place."""
    asked = [(handler.name, parameter, kind) for parameter, kind in handler.binding.asked()]
    if instead is not None:
        for _, parameter, kind in asked:
            if kind not in instead:
                raise ConfigurationError(
                    f"handler {handler.name!r} asks for {shown(kind)} (parameter {parameter!r}): resources= has none"
                )
        yield instead
        return
    lifespan = Lifespan(app, structlog.get_logger())
    value = await lifespan.enter()
    try:
        yield app.resources.taken(value, asked)
    finally:
        await lifespan.leave()
    if lifespan.task is not None and lifespan.task.done() and not lifespan.task.cancelled():
        lifespan.task.result()


async def _attempt(handler: Handler, execution: Execution, event: Event, attempt: int, log: Any) -> Outcome:
    superseded: list[SupersededError] = []
    committed: list[Outcome] = []

    async def call(job: Job) -> bool:
        try:
            recorded = await execution.run(job)
        except SupersededError as error:
            superseded.append(error)
            raise
        if isinstance(job, Batch) and job.settled:
            superseded.append(SupersededError(SUPERSEDED))
        elif recorded:
            committed.append(job.outcomes[0][1] if isinstance(job, Batch) else job.done)
        return recorded

    ending = _Ending()
    # A batch of one does not wait for company.
    make, handler = (Lane, handler) if handler.batch is None else (BatchLane, replace(handler, batch=1))
    lane = make(handler, capacity=1, run=call, recorder=cast(Recorder, ending), changed=lambda: None, log=log)
    job = _job(lane, event, attempt)
    lane.active[job.event_id] = job
    try:
        lane.start([job])
        outcome = await ending.outcome
    finally:
        if lane.interrupt_all() and job.task is not None:
            await asyncio.wait({job.task}, timeout=ABANDON_AFTER)
        await execution.close()
    if superseded:
        raise superseded[0]
    return committed[0] if outcome is None else outcome


class _Ending:
    """Takes the place of the recorder: the outcome is the test's."""

    def __init__(self) -> None:
        self.outcome: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()

    def add(self, job: Job, outcome: Outcome | None) -> None:
        """What the lane calls at the end of an attempt."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)


def _job(lane: Lane, event: Event, attempt: int) -> Job:
    # An event that was not read from the database has the time of its UUIDv7: the same in each of its runs, since it is
    # part of the delivery's key.
    at = (event.id.int >> 80) * 1000 if event.created_at is None else to_microseconds(event.created_at)
    headers = encode_headers(event.headers)
    job = Job(lane, str(event.id), at, event.name, event.key or "", event.payload_json, headers or "")
    job.attempt = attempt
    return job
