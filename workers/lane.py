"""One handler at work in this process: what waits, what runs, and how a run ends."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from random import random
from typing import TYPE_CHECKING, Any

from structlog.contextvars import bind_contextvars

from outbox import telemetry, trace
from outbox.position import Position
from workers import crash, failure, prefetch
from workers.errors import ChildDiedError, DecidedError, HandlerTimeoutError, RetryLater, Snooze, SupersededError
from workers.handler import Handler
from workers.job import Job
from workers.outcome import DONE, Dead, Done, Outcome, judge
from workers.result import kept

if TYPE_CHECKING:
    from workers.delivery import Recorder

ABANDON_AFTER = 2.0
"""Seconds a run may take to end after it was interrupted."""


class Source:
    """One stream that feeds a handler: its catch-up stream or the main stream of its event name."""

    __slots__ = ("inflight", "key", "lane", "main", "position", "ready", "rung", "step", "won")

    def __init__(self, lane: Lane, key: str, *, main: bool) -> None:
        self.lane = lane
        self.key = key
        self.main = main
        self.ready = True
        """There may be entries to read."""
        self.step = lane.first
        """Entries to ask for, if there is room for them."""
        self.position: bytes | None = None
        """Last delivered id of the group when the stream was last read dry."""
        self.inflight: dict[bytes, Job] = {}
        self.rung: list[Any] | None = None
        """The entry that rang, until the stream is read."""
        self.won = True
        """Whether the last entry that rang was given to this worker; then the next one may be expected too."""

    @property
    def open(self) -> bool:
        """New entries of it may be read."""
        return (not self.main or self.lane.attached) and not self.lane.paused


class Lane:
    """Runs one handler's deliveries, at most `capacity` at once, and hands each outcome to the recorder."""

    def __init__(
        self,
        handler: Handler,
        *,
        capacity: int,
        run: Callable[[Job], Awaitable[bool]],
        recorder: Recorder,
        changed: Callable[[], None],
        log: Any,
    ) -> None:
        self.handler = handler
        self.name = handler.name
        self.capacity = capacity
        self.limit = capacity
        """How many may run now: fewer when the worker's bound is shared."""
        self.window = capacity
        self.least = capacity
        """Deliveries for which there is always room, but for their bytes."""
        self.first = prefetch.FIRST
        """Entries to ask of a stream of which nothing is known."""
        self.active: dict[str, Job] = {}
        self.attached = False
        self.paused = False
        self.done_to: Position | None = None
        self.next_due = 0.0
        """When to look for due retries, by the event loop's clock."""
        self.held = 0
        """Bytes of payload that the active ones are, about."""
        self.stopping = False
        """The worker stops."""
        self._run = run
        self._recorder = recorder
        self._changed = changed
        self._log = log.bind(handler=handler.name)
        self._waiting: deque[Job] = deque()
        self._retries: deque[Job] = deque()
        self._retry_began = False
        self._claimed = 0
        """Retries among the active."""
        self._running: dict[Job, None] = {}
        self._ending: dict[Job, None] = {}
        self._warned = False
        self._abandoned: set[asyncio.Task[None]] = set()
        self._measured: tuple[Job, float] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._context = contextvars.copy_context()
        bound = self._context.run(bind_contextvars, handler=handler.name, event_id="", attempt=1)
        self._event_id, self._attempt_number = bound["event_id"].var, bound["attempt"].var
        self._decide = partial(judge, verdicts=handler.verdicts)

    @property
    def resting(self) -> bool:
        """Nothing new starts: the worker stops, or somebody holds the handler back."""
        return self.stopping or self.paused

    # What comes in

    def room(self) -> int:
        """How many entries may be read now; 0 until a read is worth while."""
        # Retries have room of their own, or a large replay would let no new event in.
        free = self.window - len(self.active) + self._claimed
        return free if free >= max(1, self.window // 4) else 0

    def retry_room(self) -> int:
        """How many due retries may be claimed now; 0 until a claim is worth while."""
        return prefetch.claimable(
            running=self.running, queued=len(self._retries), capacity=self.capacity, window=self.window
        )

    def start(self, jobs: list[Job]) -> None:
        """Run these first attempts as room allows."""
        self._waiting.extend(job for job in jobs if not job.closed)
        self._fill()

    def start_retry(self, job: Job) -> None:
        """Run this leased retry as room allows."""
        self._claimed += 1
        self._retries.append(job)
        self._fill()

    def measure(self, last: Job, began: float) -> None:
        """Adapt the window when `last`, the last of a full read or claim that `began` then, is over."""
        if self._measured is None and self.active.get(last.event_id) is last:
            self._measured = last, began

    @property
    def running(self) -> int:
        return len(self._running) + len(self._ending)

    def _fill(self) -> None:
        while len(self._running) + len(self._ending) < self.limit and not (self.stopping or self.paused):
            if self._retries:
                job = self._turn().popleft()
            elif self._waiting:
                job = self._waiting.popleft()
            else:
                return
            if not job.closed:
                self._begin(job)

    def _turn(self) -> deque[Job]:
        """What begins next: retries and first attempts in turn where both wait, so that neither a large replay nor new
        events keep the other out."""
        if self._retries and self._waiting:
            self._retry_began = not self._retry_began
            return self._retries if self._retry_began else self._waiting
        return self._retries or self._waiting

    def _begin(self, job: Job) -> None:
        job.deadline = self._loop.time() + self.handler.timeout
        self._running[job] = None
        # A context of its own: what one run sets must not reach the next.
        job.task = self._loop.create_task(self._attempt(job), context=self._context.copy())
        if self._timer is None:
            self._timer = self._loop.call_at(job.deadline, self._expire)

    # A run and its end

    async def _attempt(self, job: Job) -> None:
        self._event_id.set(job.event_id)
        if job.attempt != 1:
            self._attempt_number.set(job.attempt)
        outcome: Outcome | None = None
        try:
            if job.headers:
                trace.receive(json.loads(job.headers))
            if job.crashes:
                await self._recorder.begins(job)
            if not await self._run(job):
                outcome = job.done
        except SupersededError:
            if not job.closed:
                self._log.info("delivery.superseded", **job.facts())
        except BaseException as error:
            if job.closed or job.cause in ("lost", "stop"):
                self._left(job)
                self._fill()
                return
            outcome = self._judge(job, error)
        self._left(job)
        self._end(job, outcome)
        job.task = None
        self._fill()

    def _end(self, job: Job, outcome: Outcome | None) -> None:
        if not job.closed:
            job.closed = True
            self._recorder.add(job, outcome)

    def _fail(self, job: Job, error: BaseException) -> None:
        self._end(job, self._judge(job, error))

    def _left(self, job: Job) -> None:
        self._running.pop(job, None)
        self._ending.pop(job, None)
        if job.task is not None:
            self._abandoned.discard(job.task)

    def decide(self, job: Job, error: BaseException) -> Outcome:
        """What the end of a run with `error` means."""
        error = self._named(job, error)
        decide = partial(crash.judge, crashes=job.crashes) if isinstance(error, ChildDiedError) else self._decide
        return decide(
            error,
            attempt=job.attempt,
            max_attempts=self.handler.max_attempts,
            backoff=self.handler.backoff,
            random=random(),
        )

    def worked(self, returned: object) -> Done:
        """What a run that returned this comes to. A result that cannot be kept is told of once, and dropped."""
        found = kept(returned)
        if isinstance(found, Done):
            return found
        if not self._warned:
            self._warned = True
            self._log.warning("result.not_kept", type=found.type, why=found.why)
        return DONE

    def _named(self, job: Job, error: BaseException) -> BaseException:
        if job.cause == "timeout" and isinstance(error, asyncio.CancelledError | HandlerTimeoutError):
            endless = " and could not be interrupted" if job.task in self._abandoned else ""
            return HandlerTimeoutError(f"timed out after {self.handler.timeout:g} s{endless}")
        return error

    def _judge(self, job: Job, error: BaseException) -> Outcome:
        outcome: Outcome
        if isinstance(error, DecidedError):
            outcome, error = error.outcome, error.__cause__ or error
        else:
            outcome = self.decide(job, error)
        self._tell(job, outcome, error)
        return outcome

    def _tell(self, job: Job, outcome: Outcome, error: BaseException) -> None:
        error = self._named(job, error)
        facts = job.facts() | {"error": type(error).__name__}
        if isinstance(outcome, Dead):
            self._log.error("delivery.dead", **facts)
        else:
            self._log.warning("delivery.retry", delay=round(getattr(outcome, "delay", 0.0), 3), **facts)
        if telemetry.shows(logging.DEBUG) and not isinstance(error, Snooze | RetryLater):
            self._log.debug("delivery.failed", exception=failure.trace(error), **facts)

    # Interruption

    def _expire(self) -> None:
        now = self._loop.time()
        self._timer = None
        while self._running:
            job = next(iter(self._running))
            if job.deadline > now:
                self._timer = self._loop.call_at(job.deadline, self._expire)
                return
            self.interrupt(job, "timeout")

    def restart_clock(self, job: Job) -> None:
        """Let this run's timeout begin now."""
        if job in self._running:
            # At the end: runs stand in the order of their deadlines.
            del self._running[job]
            self._running[job] = None
            job.deadline = self._loop.time() + self.handler.timeout

    def interrupt(self, job: Job, cause: str) -> None:
        """End a run: `timeout` counts as a failure, `lost` and `stop` record nothing."""
        if job.cause is None:
            job.cause = cause
        if job not in self._running:
            return
        del self._running[job]
        self._ending[job] = None
        if job.ticket is not None:
            job.ticket.interrupt()
        elif job.task is not None:
            job.task.cancel()
        self._loop.call_later(ABANDON_AFTER, self._abandon, job)

    def _abandon(self, job: Job) -> None:
        if job not in self._ending:
            return
        del self._ending[job]
        assert job.task is not None
        self._abandoned.add(job.task)
        if job.ticket is not None:
            job.ticket.abandon()
        self._log.error("handler.abandoned", **job.facts(), cause=job.cause)
        if job.cause == "timeout" and not job.closed:
            self._fail(job, HandlerTimeoutError())
        job.closed = True
        self._fill()

    def lose(self, job: Job) -> None:
        """The lease of this delivery is another worker's now."""
        self._log.warning("lease.lost", **job.facts())
        self.interrupt(job, "lost")
        job.closed = True
        self.release(job)

    def release(self, job: Job) -> None:
        """Nothing is left to do for this delivery here."""
        if self.active.get(job.event_id) is job:
            del self.active[job.event_id]
            self.held -= len(job.payload)
            self._claimed -= job.claimed
        for source, entry_id in job.entries():
            source.inflight.pop(entry_id, None)
        if self._measured is not None and self._measured[0] is job:
            seconds, self._measured = self._loop.time() - self._measured[1], None
            self.window = prefetch.next_window(self.window, capacity=self.least, seconds=seconds)
        self._changed()

    # Stop

    def take_back(self) -> list[Job]:
        """What was not started, for others."""
        jobs = [job for job in (*self._waiting, *self._retries) if not job.closed]
        self._waiting.clear()
        self._retries.clear()
        for job in jobs:
            job.closed = True
        return jobs

    def interrupt_all(self) -> list[Job]:
        """End every run without an outcome, and return what was running."""
        jobs = list(self._running)
        for job in jobs:
            self.interrupt(job, "stop")
        return jobs + [job for job in self._ending if job not in jobs]
