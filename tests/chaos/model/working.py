"""A worker as a simulated process: the real `workers.worker.Worker` in an event loop whose time is the world's, with
every call to a server a step of the schedule."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import events
from collections.abc import Callable, Mapping
from contextvars import Context
from functools import cache
from types import SimpleNamespace
from typing import Any

import redis

from outbox.event import Event
from tests.chaos.model.awaiting import Servers, exchange
from tests.chaos.model.handlers import HERE
from tests.chaos.model.postgres import Postgres, Transaction
from tests.chaos.model.relaying import SETTINGS
from tests.chaos.model.worker_statements import READS, STATEMENTS
from tests.chaos.model.world import EPOCH, Call, Process, Server, World
from workers import queries
from workers.app import App
from workers.consumer import Consumer
from workers.database import Database
from workers.errors import SupersededError
from workers.job import Job
from workers.transaction import SUPERSEDED
from workers.worker import Worker

LEASE, HEARTBEAT, GRACE = 4.0, 1.0, 2.0


class Loop(asyncio.BaseEventLoop):
    """An event loop that runs what is ready, and then returns."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._selector = self
        self._clock_resolution = 1e-6
        self.tasks: list[asyncio.Task[Any]] = []
        self.set_exception_handler(lambda *_: None)
        self.set_task_factory(self._made)  # type: ignore[arg-type]

    def _made(self, loop: Loop, coroutine: Any, context: Context | None = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, context=context)
        self.tasks.append(task)
        if len(self.tasks) > 200:
            self.tasks = [each for each in self.tasks if not each.done()]
        return task

    def time(self) -> float:
        return self._world.time - EPOCH

    def select(self, timeout: float | None) -> list[Any]:
        """Nothing comes from outside."""
        return []

    def _process_events(self, event_list: Any) -> None: ...

    def go_on(self) -> None:
        """Run all that is ready or due."""
        events._set_running_loop(self)
        try:
            while self._ready or (self._scheduled and self._scheduled[0].when() <= self.time()):  # type: ignore[attr-defined]
                self._run_once()  # type: ignore[attr-defined]
        finally:
            events._set_running_loop(None)


class Working(Process):
    """A worker with its event loop."""

    def __init__(self, world: World, name: str, app: App) -> None:
        self.world = world
        self.name = name
        self.dead = False
        self.consumer: Consumer | None = None
        self._waiting: list[Call] = []
        self._loop = Loop(world)
        self._task = self._loop.create_task(self._run(app))

    @property
    def waiting(self) -> list[Call]:
        return self._waiting

    async def _run(self, app: App) -> None:
        HERE.set(self)
        self.worker = Worker(app, SETTINGS, lease=LEASE, heartbeat=HEARTBEAT, grace=GRACE)
        await self.worker.run()

    def wake(self) -> None:
        self._loop.go_on()
        if self._task.done() and not self.dead:
            self._task.result()

    @property
    def over(self) -> bool:
        """It has stopped by itself."""
        return self._task.done()

    def ring(self) -> None:
        """Its doorbells ring."""
        if self.consumer is not None:
            self.consumer.look_everywhere()

    def stop(self) -> None:
        """SIGTERM."""
        self.wake()
        self.worker.request_stop()
        self.wake()

    def kill(self, *, sent: bool) -> None:
        if sent:
            for call in self._waiting[:1]:
                if call.server not in self.world.away:
                    with contextlib.suppress(redis.RedisError, SupersededError):
                        call.perform()
        self.dead = True
        self._waiting.clear()
        for transaction in [each for each in self.world.postgres.open if each.owner is self]:
            self.world.postgres.rollback(transaction)
        while running := [task for task in self._loop.tasks if not task.done()]:
            for task in running:
                task.cancel()
            self._loop.go_on()
        self._loop.close()

    async def call(self, server: Server, perform: Callable[[], Any]) -> Any:
        """Stand still until the world has done this."""
        if self.dead:
            raise asyncio.CancelledError
        future: asyncio.Future[Any] = self._loop.create_future()

        def answer(result: Any, error: BaseException | None) -> None:
            # Who waited may have been cancelled; what was sent was done all the same.
            if not future.done():
                future.set_exception(error) if error is not None else future.set_result(result)
            self.wake()

        self._waiting.append(Call(server, perform, answer))
        return await future


@cache
def _names() -> dict[str, str]:
    return {queries.sql(name, SETTINGS.schema_name): name for name in STATEMENTS}


class SimulatedDatabase(Database):
    """Statements are tried again as they are; a single try is a step."""

    async def once(self, statement: str, params: Mapping[str, Any]) -> list[Any]:
        process = HERE.get()
        async with self._turn, asyncio.timeout(30):
            found: list[Any] = await process.call("postgres", lambda: _perform(process.world, statement, params))
        self._up.set()
        return found


def _perform(world: World, statement: str, params: Mapping[str, Any]) -> list[Any]:
    if statement in _names():
        name = _names()[statement]
        rows = STATEMENTS[name](world.postgres, params)
        if name not in READS:
            world.postgres.flush()
        return rows
    if "to_regclass" in statement:
        return [("delivery",)]
    if "max(version)" in statement:
        return [(10_000,)]
    if "pg_control_system" in statement:
        return [("1/model",)]
    if statement == "SELECT" or statement.startswith("NOTIFY") or ".worker WHERE" in statement:
        return []
    raise LookupError(f"the simulated PostgreSQL does not know {statement}")


class Listening(Consumer):
    """Its doorbells ring when the schedule says so: they only say earlier what the look at every stream finds."""

    async def run(self) -> None:
        HERE.get().consumer = self
        await super().run()

    async def _listen(self, until: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - self._loop.time())):
                await self._wake.wait()


class SimulatedSession:
    """Stands for the session of a transactional handler: effects, without anything that would make them unique."""

    def __init__(self, engine: None, **_: Any) -> None:
        self._process = HERE.get()
        self._server: Postgres = self._process.world.postgres
        self._transaction: Transaction | None = None
        self.sync_session = SimpleNamespace()

    async def write(self, handler: str, event: Event) -> None:
        """An effect."""
        await self._perform(lambda transaction: transaction.effects.append((handler, str(event.id))))

    async def follow(self, name: str) -> None:
        """Another event."""
        payload = '{"n":0}'
        await self._perform(lambda own: self._server.insert(own, self._server.new_id(), name, "", payload))

    async def run_sync(self, finish: Callable[..., None], job: Job) -> None:
        """As `finish`: the end, with the delivery's row."""
        if job.closed or job.cause is not None:
            raise asyncio.CancelledError
        await self._perform(lambda transaction: commit(self._process.world, transaction, job))

    async def close(self) -> None:
        if self._transaction is not None:
            self._server.rollback(self._transaction)

    async def _perform(self, perform: Callable[[Transaction], None]) -> None:
        def checked() -> None:
            transaction = self._transaction = self._transaction or self._server.begin(self._process)
            self._server.check_open(transaction)
            perform(transaction)

        await self._process.call("postgres", checked)


def commit(world: World, transaction: Transaction, job: Job) -> None:
    """The delivery's row and COMMIT, in one message."""
    server, handler = world.postgres, job.lane.name
    if job.lease is None:
        recorded = server.record(job.event_id, handler, "done", attempts=1) is not None
    else:
        asked = {"ids": [job.event_id], "handlers": [handler], "leases": [job.lease]}
        recorded = bool(STATEMENTS["finish_done"](server, asked))
    if not recorded:
        server.rollback(transaction)
        raise SupersededError(SUPERSEDED)
    server.commit(transaction)


class Watchdog:
    """Stands for the worker's: nothing blocks here."""

    def __init__(self, log: Any, *, standstill: float) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


def replacements() -> Mapping[str, Any]:
    """What to set while workers are simulated, by its dotted name."""
    return {
        "workers.worker.Database": SimulatedDatabase,
        "workers.execution.Execution._open_engine": lambda self, capacity: None,
        "workers.execution.AsyncSession": SimulatedSession,
        "workers.worker.Consumer": Listening,
        "workers.worker.Watchdog": Watchdog,
        "workers.link.connect": lambda url: Servers(),
        "workers.consumer.exchange": exchange,
        "workers.delivery.exchange": exchange,
        "workers.lease.exchange": exchange,
        "workers.link.exchange": exchange,
    }
