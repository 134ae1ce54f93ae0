"""The worker: everything that one process does for its handlers, with one lifecycle."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import Any, Self

import structlog

from outbox.errors import ConfigurationError, SchemaError
from outbox.health import Pulse
from outbox.names import catch_up_key, stream_key
from outbox.position import Position
from outbox.settings import Settings
from workers import link, registration, tracing
from workers.app import App
from workers.batch_execution import BatchExecution
from workers.batch_lane import BatchLane
from workers.consumer import Consumer
from workers.database import LOCK_TIMEOUT, Database
from workers.delivery import Recorder
from workers.execution import Execution
from workers.handler import Handler
from workers.lane import Lane, Source
from workers.lease import Leases
from workers.lifespan import Lifespan
from workers.measures import Measures
from workers.once import Once
from workers.outcome import Snoozed
from workers.patience import until_back
from workers.retries import Retries
from workers.slots import Sharing, SharingBatchLane, Slots
from workers.watchdog import Watchdog

DEFAULT_CONCURRENCY = 100
REFRESH = 1.0
"""Seconds between readings of the handlers' rows."""
SEEN = 10.0
"""Seconds between renewals of `last_seen` and of the prefix's marker."""
INTERRUPT_GRACE = 3.0
"""Seconds that interrupted runs and the last outcomes get before the worker gives them up."""


class Worker:
    """Runs an app's handlers until it is stopped.

    `concurrency` is how many runs of one plain async handler go on at once (threads and transactions: a tenth of it, at
    most 20), unless the handler says otherwise; `total_concurrency` bounds all of them together, and keeps one run for
    each handler. `lease`, `heartbeat` and `grace` are in seconds: a worker that is
    silent for `lease` is taken for dead; a stopping worker lets runs finish for `grace`. After `max_events` deliveries
    `run` ends by itself, and `retired` is true: what runs then comes to its end, what waits is handed back. With
    `measures` it counts there what it does. With `standstill` the process is ended when its event loop
    has not turned for so many seconds; 0 is for a worker that shares its process with something else.

    >>> async with Worker(app, settings) as worker:
    ...     await worker.run()
    """

    def __init__(
        self,
        app: App,
        settings: Settings,
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        lease: float = 10.0,
        heartbeat: float = 3.0,
        grace: float = 30.0,
        max_events: int | None = None,
        total_concurrency: int | None = None,
        measures: Measures | None = None,
        standstill: float = 0.0,
    ) -> None:
        if not app.handlers:
            raise ConfigurationError("the app has no handlers")
        if total_concurrency is not None and total_concurrency < len(app.handlers):
            raise ConfigurationError(
                f"total_concurrency must be at least {len(app.handlers)}, the number of handlers: each of them can run "
                "one event whatever the others do"
            )
        if not 0 < heartbeat < lease / 2:
            raise ConfigurationError("the heartbeat must be shorter than half the lease")
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._app = app
        self._settings = settings
        self._concurrency = concurrency
        self._lease = lease
        self._heartbeat = heartbeat
        self._grace = grace
        self._max_events = max_events
        self._measures = measures
        self.pulse = Pulse()
        """Shows that the loop turns, when there are measures."""
        self._slots = None if total_concurrency is None else Slots(total_concurrency)
        self.retired = False
        """It ended because it had handled `max_events`."""
        self._log = structlog.get_logger().bind(worker=self.name)
        self._tasks: list[asyncio.Task[None]] = []
        self._executions: list[Execution] = []
        self._lanes: dict[str, Lane] = {}
        self._databases: list[Database] = []
        self._unfit: str | None = None
        self._lifespan = Lifespan(app, self._log)
        self._watchdog = Watchdog(self._log, standstill=standstill)
        self._stop = asyncio.Event()
        self._told = asyncio.Event()
        self._now = asyncio.Event()
        self._failure: BaseException | None = None
        self._started = False
        self._stopped = False

    # Lifecycle

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Connect, register the handlers and begin to work. Starting twice does nothing.

        Waits for both servers, and for a schema and rights that will do (`refused`). Raises `ConfigurationError` or
        `PrefixTakenError`, and what the app's lifespan raises.
        """
        if self._started:
            return
        self._started = True
        if self._measures is not None:
            self._measures.lanes = self._lanes
            self.pulse.keep()
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        self._up = asyncio.Event()
        url, schema = self._settings.libpq_url(), self._settings.schema_name
        waits = (None, LOCK_TIMEOUT, LOCK_TIMEOUT)
        self._databases = [Database(url, schema, self._up, self._log, lock_timeout=wait) for wait in waits]
        lookups, outcomes, control = self._databases
        self._servers = link.connect(self._settings.redis_url.get_secret_value())
        for database in self._databases:
            # Now, before the handlers' own connections take all that the server has.
            await database.query("SELECT", {})
        async for attempt in until_back((SchemaError,)):
            with attempt:
                self._unfit = await registration.unfit(control, self._settings)
                if self._unfit is not None:
                    raise SchemaError(self._unfit)
        self._owner = await registration.owner(control, schema)
        await self._claim_prefix()
        self._resources = await self._enter_lifespan()
        await self._register(control)

        self._recorder = Recorder(outcomes, self._servers, self._log, self._measures)
        self._sources: list[Source] = []
        for handler in self._app.handlers.values():
            self._open_lane(handler, control)
        batches = [handler.name for handler in self._app.handlers.values() if handler.batch is not None]
        if batches and self._app.middlewares and not self._app.batch_middlewares:
            self._log.warning("middleware.skipped", handlers=batches)
        self._leases = Leases(
            self._lanes, self._sources, servers=self._servers, database=control, recorder=self._recorder,
            name=self.name, lease=self._lease, heartbeat=self._heartbeat, log=self._log,
        )  # fmt: skip
        self._retries = Retries(
            self._lanes, database=control, recorder=self._recorder, lease=self._lease, log=self._log
        )
        self._consumer = Consumer(
            list(self._lanes.values()), self._sources, servers=self._servers, database=lookups,
            up=self._up, recorder=self._recorder, name=self.name, refresh=self.refresh, log=self._log,
        )  # fmt: skip
        await self.refresh()
        self._reading = [self._serve(self._consumer.run()), self._serve(self._retries.run())]
        self._reading.append(self._serve(self._leases.take_over()))
        self._serve(self._recorder.record())
        self._serve(self._recorder.acknowledge())
        self._serve(self._servers.keep_located())
        self._serve(self._leases.entries.keep())
        self._serve(self._leases.keep_retries())
        self._watchdog.start()
        if self._max_events is not None:
            self._serve(self._retire(self._max_events))
        self._serve(self._keep_fresh())
        self._serve(self._keep_seen(control))
        self._log.info("worker.started", handlers=sorted(self._lanes))

    async def _enter_lifespan(self) -> Mapping[Any, Any]:
        value = await self._lifespan.enter()
        if self._lifespan.task is not None:
            self._lifespan.task.add_done_callback(self._ended)
        wanted = [
            (handler.name, parameter, kind)
            for handler in self._app.handlers.values()
            for parameter, kind in handler.binding.asked()
        ]
        return self._app.resources.taken(value, wanted)

    def _open_lane(self, handler: Handler, control: Database) -> None:
        heavy = handler.transactional or not handler.asynchronous or handler.batch is not None
        capacity = handler.concurrency or (max(1, min(20, self._concurrency // 10)) if heavy else self._concurrency)
        if handler.pool == "process" and handler.concurrency is None:
            capacity = min(capacity, os.cpu_count() or 1)
        make_execution = Execution if handler.batch is None else BatchExecution
        if self._slots is None:
            make_lane = Lane if handler.batch is None else BatchLane
        else:
            make_lane = Sharing if handler.batch is None else SharingBatchLane
        middleware = self._app.middlewares if handler.batch is None else self._app.batch_middlewares
        execution = make_execution(handler, self._settings, control, capacity, self._log, self._resources, middleware)
        self._executions.append(execution)
        run = execution.run
        if handler.at_most_once:
            run = Once(run, control, handler.timeout, lease=self._lease).run
        run = tracing.around(handler, run)
        if self._measures is not None:
            run = self._measures.around(handler.name, run)
        lane = make_lane(
            handler, capacity=capacity, run=run, recorder=self._recorder, changed=self._changed, log=self._log
        )
        if self._slots is not None and isinstance(lane, Sharing):
            lane.share(self._slots)
        self._lanes[handler.name] = lane
        prefix = self._settings.prefix
        self._sources.append(Source(lane, catch_up_key(prefix, handler.event_name, handler.name), main=False))
        self._sources.append(Source(lane, stream_key(prefix, handler.event_name), main=True))

    def _changed(self) -> None:
        self._consumer.wake()
        self._retries.wake()

    def _serve(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        self._tasks.append(task)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
            self._stop.set()
            self._log.error("worker.failed", error=type(error).__name__, exc_info=error)

    @property
    def started(self) -> bool:
        """It registered and began to read."""
        return bool(self._tasks)

    @property
    def refused(self) -> str | None:
        """What somebody has to mend in PostgreSQL before it can go on: the schema, or what its role may do."""
        return next(filter(None, (self._unfit, *(each.refused for each in self._databases))), None)

    @property
    def stopping(self) -> bool:
        """It reads no more."""
        return self._stop.is_set()

    async def run(self) -> None:
        """Work until `stop` or `request_stop`. Raises what made the worker fail, if anything did."""
        await self.start()
        await self._stop.wait()
        await self.stop()
        if self._failure is not None:
            raise self._failure

    def request_stop(self, *, now: bool = False) -> None:
        """Ask `run` to end: gracefully, or `now` without waiting for runs. Fit for a signal handler of the loop."""
        self._told.set()
        self._stop.set()
        if now:
            self._now.set()

    async def stop(self) -> None:
        """Read no more, finish what runs, hand the rest back. Stopping twice or before the start is fine."""
        self._stop.set()
        if not self._started or self._stopped:
            return
        self._stopped = True
        if hasattr(self, "_reading"):
            await self._wind_down()
        self._watchdog.stop()
        await end(self._tasks)
        for execution in self._executions:
            with contextlib.suppress(Exception):
                await execution.close()
        await self._lifespan.leave()
        for database in self._databases:
            await database.close()
        if hasattr(self, "_servers"):
            with contextlib.suppress(*link.Unreachable):
                await self._servers.aclose()
        self._log.info("worker.stopped")

    async def _wind_down(self) -> None:
        for lane in self._lanes.values():
            lane.stopping = True
        # What is being read or claimed is let to its end: a reply that nobody takes would be a lost lease.
        self._consumer.stop()
        self._retries.stop()
        await asyncio.wait(self._reading[:2], timeout=INTERRUPT_GRACE)
        await end(self._reading)
        rest = [job for lane in self._lanes.values() for job in lane.take_back()]
        await self._briefly(self._leases.hand_back(rest))
        running = asyncio.create_task(self._runs_over())
        now = asyncio.create_task(self._now.wait())
        if self.retired:
            # Nobody waits for this process: what runs has its own timeout.
            told = asyncio.create_task(self._told.wait())
            await asyncio.wait({running, told, now}, return_when=asyncio.FIRST_COMPLETED)
            told.cancel()
        await asyncio.wait({running, now}, timeout=self._grace, return_when=asyncio.FIRST_COMPLETED)
        now.cancel()
        for lane in self._lanes.values():
            lane.interrupt_all()
        await asyncio.wait({running}, timeout=INTERRUPT_GRACE)
        running.cancel()
        await self._briefly(self._recorder.drained())
        # What was interrupted, and what came to an end that could not be recorded.
        left = [job for lane in self._lanes.values() for job in lane.active.values()]
        await self._briefly(self._leases.hand_back(left))
        await self._briefly(self._leases.leave())
        await self._briefly(registration.disappear(self._databases[2], self.name, self._settings.schema_name))

    async def _runs_over(self) -> None:
        while any(lane.running for lane in self._lanes.values()):
            await asyncio.sleep(0.01)

    async def _briefly(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(INTERRUPT_GRACE):
                await work
        except link.Unreachable as error:
            self._log.warning("worker.stop_incomplete", error=type(error).__name__)

    async def _retire(self, after: int) -> None:
        while self._recorder.recorded < after:
            self._recorder.wrote.clear()
            await self._recorder.wrote.wait()
        self._log.info("worker.retires", events=self._recorder.recorded)
        self.retired = True
        self._stop.set()

    # Upkeep

    async def refresh(self) -> None:
        """Read where our handlers stand, and when their retries are due."""
        rows = await self._databases[2].fetch("refresh", {"handlers": list(self._lanes)})
        now = asyncio.get_running_loop().time()
        for name, attached, tick, seq, paused, due_in in rows:
            lane = self._lanes[name]
            changed = (lane.attached, lane.paused) != (attached, paused)
            resting = lane.paused or paused
            lane.attached, lane.paused = attached, paused
            if resting:
                self._put_back(lane)
            lane.done_to = None if tick is None else Position(tick, seq)
            lane.next_due = now + (3600.0 if due_in is None else max(0.0, due_in))
            if changed:
                for source in self._sources:
                    source.ready = source.ready or source.lane is lane
                self._changed()
        self._retries.wake()

    def _put_back(self, lane: Lane) -> None:
        """What a paused handler was given and has not started is PostgreSQL's again: it may be cancelled there."""
        for job in lane.take_back():
            self._recorder.add(job, Snoozed(0.0, ""))

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH)
            await self.refresh()

    async def _keep_seen(self, control: Database) -> None:
        while True:
            await asyncio.sleep(SEEN)
            await self._claim_prefix()
            await self._register(control)

    async def _register(self, control: Database) -> None:
        handlers = list(self._app.handlers.values())
        await registration.register(control, handlers, self._settings.schema_name)
        await registration.appear(control, self.name, handlers)

    async def _claim_prefix(self) -> None:
        async for attempt in until_back(link.Unreachable):
            with attempt:
                await self._servers.locate()
                await registration.claim_prefix(self._servers, self._settings.prefix, self._owner)


async def end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks until they are over. Once is not enough: `asyncio.wait_for` of Python 3.11, which the Redis client
    uses, drops a cancellation that comes together with its result."""
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=0.5)
