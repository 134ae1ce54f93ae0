"""One attempt: the arguments, the call, and for a transactional handler the transaction around it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import random
from typing import Any

import psycopg
import sqlalchemy.exc
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from outbox.settings import Settings
from workers.arguments import arguments
from workers.database import Database
from workers.dependencies import NONE_GIVEN, composed
from workers.errors import SupersededError, TransactionFailedError
from workers.failure import describe
from workers.handler import Handler
from workers.job import Job
from workers.middleware import Run, around
from workers.outcome import DONE, take
from workers.processes import Processes
from workers.soft_timeout import in_coroutine, in_thread
from workers.threads import Threads
from workers.transaction import HandlerSession, finish, limit_idle, record_on_commit, repeatable, write_outcome

REPEATS = 10
"""How often a transaction that failed through no fault of the handler is tried again in place: for some 5 seconds."""

IDLE_MARGIN = 10.0
"""Seconds beyond its timeout after which the server ends a handler's idle transaction."""


def take_one(job: Job, returned: object) -> None:
    """Raise what a handler's return value stands for, unless that is success: then it is what the run comes to."""
    if returned is None:
        job.done = DONE
    else:
        take(returned)
        job.done = job.lane.worked(returned)


class Execution:
    """Runs the attempts of one handler. Calling it gives True when the outcome is recorded already."""

    _bind = staticmethod(arguments)
    _take = staticmethod(take_one)
    _write = staticmethod(write_outcome)
    _around: Callable[..., Run] = staticmethod(around)

    def __init__(
        self,
        handler: Handler,
        settings: Settings,
        database: Database,
        capacity: int,
        log: Any,
        resources: Mapping[Any, Any] = NONE_GIVEN,
        middleware: Sequence[Any] = (),
    ) -> None:
        self.handler = handler
        self.call = composed(handler, resources)
        if handler.soft_timeout is not None:
            told = in_coroutine if handler.asynchronous else in_thread
            self.call = told(self.call, handler.soft_timeout)
        self._middleware = middleware
        self._settings = settings
        self._database = database
        self._log = log.bind(handler=handler.name)
        self._arguments = partial(self._bind, handler)
        self._processes = Processes(handler, settings) if handler.pool == "process" else None
        in_threads = not handler.asynchronous and self._processes is None
        self._threads = Threads(f"handler {handler.name}") if in_threads else None
        self._engine: Any = None
        if handler.transactional:
            self._once = self._once_async if handler.asynchronous else self._once_in_thread
            self._open_engine(capacity)

    @property
    def run(self) -> Run:
        return self._around(self._middleware, self._alone, self._log)

    @property
    def _alone(self) -> Run:
        if self.handler.transactional:
            return self._transactional
        if self._processes is not None:
            return self._plain_in_process
        return self._plain if self.handler.asynchronous else self._plain_in_thread

    async def close(self) -> None:
        if self._threads is not None:
            self._threads.close()
        if self._processes is not None:
            await self._processes.close()
        if self._engine is None:
            return
        if self.handler.asynchronous:
            await self._engine.dispose()
        else:
            self._engine.dispose()

    # Plain

    async def _plain(self, job: Job) -> bool:
        returned = await self.call(**self._arguments(job))
        if returned is not None:
            self._take(job, returned)
        return False

    async def _plain_in_thread(self, job: Job) -> bool:
        arguments = self._arguments(job)
        self._take(job, await self._in_thread(job, lambda: self.call(**arguments)))
        return False

    async def _plain_in_process(self, job: Job) -> bool:
        assert self._processes is not None
        self._take(job, await self._processes.run(job))
        return False

    async def _in_thread(self, job: Job, call: Callable[[], Any]) -> Any:
        assert self._threads is not None
        context = contextvars.copy_context()
        ticket = self._threads.submit(lambda: context.run(call))
        job.ticket = ticket
        try:
            return await ticket.result
        finally:
            job.ticket = None

    # Transactional

    def _open_engine(self, capacity: int) -> None:
        from sqlalchemy import create_engine

        options: dict[str, Any] = {
            "pool_size": capacity,
            # The lane bounds the runs; a run that was abandoned keeps its connection, and must starve no other.
            "max_overflow": -1,
            "pool_use_lifo": True,
            "pool_reset_on_return": None,
            "hide_parameters": True,
            "connect_args": {"connect_timeout": 5, "application_name": "outbox handler", "prepare_threshold": None},
        }
        url = self._settings.sqlalchemy_url()
        if self.handler.asynchronous:
            self._engine = create_async_engine(url, **options)
            target = self._engine.sync_engine
        else:
            target = self._engine = create_engine(url, **options)
        record_on_commit(target, self._settings.schema_name, self._write)
        limit_idle(target, self.handler.timeout + IDLE_MARGIN)

    async def _transactional(self, job: Job) -> bool:
        for repeat in range(REPEATS + 1):
            try:
                await self._once(job)
                return True
            except SupersededError:
                raise
            except (sqlalchemy.exc.DBAPIError, psycopg.Error) as error:
                why = repeatable(error)
                if why is None or job.cause is not None:
                    raise
                if repeat == REPEATS:
                    raise TransactionFailedError(f"{why}, {REPEATS + 1} times: {describe(error)}") from error
                self._log.warning("transaction.repeated", **job.facts(), why=why)
                if why == "connection" and await self._recorded(job):
                    return True
                await asyncio.sleep(min(1.0, 0.02 * 2**repeat) * (0.5 + random()))
        raise AssertionError("unreachable")

    async def _recorded(self, job: Job) -> bool:
        """Whether the COMMIT whose reply was lost went through. Waits for PostgreSQL."""
        rows = await self._database.fetch("outcome_of", {"id": job.event_id, "handler": job.lane.name, "at": job.at})
        if job.lease is None:
            return bool(rows)
        return not rows or rows[0][1] != job.lease

    async def _once_async(self, job: Job) -> None:
        arguments = self._arguments(job)
        session = AsyncSession(self._engine, sync_session_class=HandlerSession, expire_on_commit=False)
        arguments[self.handler.binding.injected["async_session"]] = session
        try:
            self._take(job, await self.call(**arguments))
            await session.run_sync(finish, job)
        except BaseException:
            session.sync_session.ours = True  # type: ignore[attr-defined]
            await session.close()
            raise

    async def _once_in_thread(self, job: Job) -> None:
        arguments = self._arguments(job)

        def call() -> None:
            session = HandlerSession(self._engine, expire_on_commit=False)
            arguments[self.handler.binding.injected["session"]] = session
            try:
                self._take(job, self.call(**arguments))
                finish(session, job)
            except BaseException:
                session.ours = True
                session.close()
                raise

        await self._in_thread(job, call)
