"""Everything that is simulated, under one clock: two servers, and processes that stand still at every call to one.

A process goes on when the schedule lets its call be done. Until then any other may do any number of steps, so a process
that waits for long is one that was paused, and goes on as a zombie.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import psycopg
import redis

from outbox.errors import OutboxError
from tests.chaos.model.postgres import Postgres
from tests.chaos.model.streams import Redis

EPOCH = 1_700_000_000.0
MOST_STEPS = 4000
"""Steps that a process may take before it comes to rest."""

Server = Literal["postgres", "redis", "nobody"]


class Fate(Enum):
    """What becomes of a call."""

    DONE = "done"
    LOST = "lost on its way"
    UNANSWERED = "done, and its reply is lost"


@dataclass(slots=True, eq=False)
class Call:
    """What a process waits for. `nobody` is asked by one that rests until `at`, or until it is told to look again."""

    server: Server
    perform: Callable[[], Any]
    answer: Callable[[Any, BaseException | None], None]
    cut: Callable[[], None] = lambda: None
    """Told that the connection is no more."""
    at: float = 0.0


class Process(ABC):
    """A process: what it waits for, and its death."""

    name: str
    paused = False

    @property
    @abstractmethod
    def waiting(self) -> list[Call]:
        """Its calls that are under way, in the order in which they were made."""

    @abstractmethod
    def wake(self) -> None:
        """Let happen what is due by now."""

    @abstractmethod
    def kill(self, *, sent: bool) -> None:
        """End it, as SIGKILL does. `sent` says whether what it has sent still arrives."""


class World:
    """The clock, the servers, and the processes by name."""

    def __init__(self, *, forgets: bool = True) -> None:
        self.time = EPOCH
        self.postgres = Postgres(self.now)
        self.redis = Redis(self.now, forgets=forgets)
        self.away: set[str] = set()
        self.processes: dict[str, Process] = {}
        self.happened: list[tuple[str, str]] = []
        """What plain handlers did, outside of every database: (handler, event)."""
        self.steps = 0

    def now(self) -> float:
        return self.time

    # Steps

    def perform(self, process: Process, call: Call, fate: Fate = Fate.DONE) -> None:
        """Let one call of a process be done, or fail."""
        process.waiting.remove(call)
        self.steps += 1
        result, error = None, None
        if call.server in self.away or fate is Fate.LOST:
            error = _broken(call.server)
        else:
            try:
                result = call.perform()
            except (psycopg.Error, redis.RedisError, OutboxError) as raised:
                error = raised
            if fate is Fate.UNANSWERED:
                result, error = None, _broken(call.server)
        if error is not None and fate is not Fate.DONE:
            call.cut()
        call.answer(result, error)

    def run(self, process: Process, steps: int = 1, pick: int = 0) -> None:
        """Let a process do up to so many calls; `pick` says which, where it has several under way."""
        process.wake()
        for _ in range(steps):
            waiting = process.waiting
            if not waiting or process.paused:
                return
            self.perform(process, waiting[pick % len(waiting)])

    def settle(self, names: Iterable[str] | None = None, *, look: bool = False) -> None:
        """Let these, or all, go on until each has nothing to do but wait, but for those that are paused. `look`: also
        those that rest are to look for something to do."""
        for process in [self.processes[name] for name in (names or tuple(self.processes))]:
            if process.paused:
                continue
            process.wake()
            for call in list(process.waiting) if look else ():
                if call.server == "nobody" and call in process.waiting:
                    self.perform(process, call)
            for _ in range(MOST_STEPS):
                ready = next(
                    (call for call in process.waiting if call.server != "nobody" or call.at <= self.time), None
                )
                if ready is None:
                    break
                self.perform(process, ready)
            else:
                raise AssertionError(f"{process.name} does not come to rest")

    def flow(self, seconds: float, step: float = 1.0) -> None:
        """Let time pass, in which all that are not paused do what they have to do."""
        until = self.time + seconds
        while self.time < until:
            self.settle()
            self.time += min(step, until - self.time)
            self.postgres.end_idle(10.0)
        self.settle()


def _broken(server: str) -> BaseException:
    if server == "postgres":
        return psycopg.OperationalError("the connection is lost")
    return redis.ConnectionError("the connection is lost")
