"""One simulated installation: two relays, two workers, writers; everything that can happen to it; and how it heals."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import structlog

from outbox.position import Position
from relay.bounds import Limit
from tests.chaos.model import relaying, working
from tests.chaos.model.handlers import application
from tests.chaos.model.postgres import Transaction
from tests.chaos.model.promises import BrokenPromise, Promises
from tests.chaos.model.relaying import Relaying
from tests.chaos.model.streams import Stream
from tests.chaos.model.working import Working
from tests.chaos.model.world import Fate, Process, World

APP = application()
RELAYS, WORKERS = ("relay-1", "relay-2"), ("worker-1", "worker-2")
PROCESSES = RELAYS + WORKERS
HARMS = ("follow", "fail over", "delete streams", "destroy groups", "trim", "delete consumers")
HEALED_WITHIN = 90.0
"""Seconds of the simulated clock in which everything must be drained when no fault is left."""

SMALL: dict[str, Any] = {
    # So that a handful of events fills streams, chunks and batches.
    "relay.bounds.MAIN": Limit(entries=6, size=1 << 20),
    "relay.bounds.CATCH_UP": Limit(entries=3, size=1 << 20),
    "relay.tick.PART_EVENTS": 1,
    "relay.tick.MOST_BYTES": 200,
    "relay.tick.FIRST_ROWS": 2,
    "relay.feed.IN_FLIGHT": 300,
    "relay.catch_up.PIECE": 2,
}


@contextmanager
def simulated(**changes: Any) -> Iterator[None]:
    """Put the simulated servers in place of the real ones; `changes` are further replacements, for broken variants."""
    logging = structlog.get_config()
    with ExitStack() as stack:
        for name, value in (SMALL | dict(relaying.replacements()) | dict(working.replacements()) | changes).items():
            stack.enter_context(patch(name, value))
        structlog.configure(wrapper_class=_Silent, cache_logger_on_first_use=False)
        stack.callback(structlog.configure, **logging)
        # Much is made and dropped, and nothing of it is needed for long.
        stack.callback(gc.set_threshold, *gc.get_threshold())
        gc.set_threshold(100_000)
        yield


class _Silent(structlog.BoundLoggerBase):
    """Nobody reads it."""

    def bind(self, **_: Any) -> _Silent:
        return self

    def _nothing(self, *_: Any, **__: Any) -> None: ...

    debug = info = warning = error = _nothing


class Simulation:
    """What a schedule does is one of these methods."""

    def __init__(self, *, forgets: bool = True, protocol: bool = True) -> None:
        self.world = World(forgets=forgets)
        self.promises = Promises(self.world, protocol=protocol)
        self._writing: dict[int, Transaction] = {}
        self._copy: dict[str, Stream] = {}
        for name in PROCESSES:
            self._start(name)
        self.world.settle()

    def _start(self, name: str) -> None:
        new = Relaying(self.world, name) if name in RELAYS else Working(self.world, name, APP)
        self.world.processes[name] = new

    def process(self, name: str) -> Process:
        return self.world.processes[name]

    # Writers

    def write(self, slot: int, name: str, key: str, payload: int) -> None:
        """Add an event in one of a few transactions that are open side by side."""
        server = self.world.postgres
        transaction = self._writing.get(slot)
        mine = transaction is not None and any(event.key == key for event in transaction.events)
        if key and server.locked(key) and not mine:
            return
        if transaction is None or transaction not in server.open:
            transaction = self._writing[slot] = server.begin(None)
        server.insert(transaction, server.new_id(), name, key, f'{{"n":{payload}}}')

    def end(self, slot: int, *, commit: bool, flush: bool) -> None:
        """Commit or roll back."""
        transaction = self._writing.pop(slot, None)
        if transaction is None or transaction not in self.world.postgres.open:
            return
        if commit:
            self.world.postgres.commit(transaction, flush=flush)
        else:
            self.world.postgres.rollback(transaction)

    # Processes

    def run(self, name: str, steps: int, pick: int) -> None:
        """Let one process go on alone."""
        process = self.process(name)
        if isinstance(process, Working) and not process.paused:
            process.ring()
        self.world.run(process, steps, pick)

    def publish(self) -> None:
        """Let the relays do what they have to do."""
        self.world.settle(RELAYS, look=True)

    def fail(self, name: str, fate: Fate, pick: int) -> None:
        """What a process has asked for is lost, or its reply is."""
        process = self.process(name)
        process.wake()
        asked = [call for call in process.waiting if call.server != "nobody"]
        if asked and not process.paused:
            self.world.perform(process, asked[pick % len(asked)], fate)

    def kill(self, name: str, *, sent: bool) -> None:
        """SIGKILL; another one is started in its place."""
        self.process(name).kill(sent=sent)
        self._start(name)

    def stop(self, name: str) -> None:
        """SIGTERM to a worker."""
        process = self.process(name)
        if isinstance(process, Working) and not process.paused:
            process.stop()

    def pause(self, name: str) -> None:
        self.process(name).paused = True

    def resume(self, name: str) -> None:
        self.process(name).paused = False

    def flow(self, seconds: float) -> None:
        self.world.flow(seconds)
        self._restart()

    def _restart(self) -> None:
        for name, process in list(self.world.processes.items()):
            if isinstance(process, Working) and process.over:
                process.kill(sent=False)
                self._start(name)

    # Servers

    def away(self, server: str) -> None:
        self.world.away.add(server)

    def back(self) -> None:
        self.world.away.clear()

    def crash_postgres(self) -> None:
        self.world.postgres.crash()

    def end_session(self, number: int) -> None:
        sessions = self.world.postgres.sessions
        if sessions:
            self.world.postgres.end_session(sessions[number % len(sessions)])

    def harm_redis(self, what: str, number: int) -> None:
        """One of `HARMS`; to all streams, or to one of them."""
        server = self.world.redis
        keys = sorted(server.streams)
        if what == "follow":
            # A replica stops to follow here, or a file is written.
            self._copy = server.copy()
            return
        # A group that is gone is made where all was done.
        self.promises.harmed |= what != "destroy groups"
        if what == "fail over":
            server.become(self._copy)
            return
        for key in keys if number % 2 else keys[number // 2 : number // 2 + 1]:
            if what == "delete streams":
                server.delete(key)
            elif what == "destroy groups":
                server.streams[key].groups.clear()
            elif what == "trim":
                last = server.streams[key].last
                server.trim(key, Position(last.tick, last.seq + 1))
            elif what == "delete consumers":
                for name, group in server.streams[key].groups.items():
                    for consumer in list(group.consumers):
                        server.delete_consumer(key, name, consumer)

    # The end

    def heal(self) -> None:
        """No more faults: everything must drain."""
        self.back()
        for slot in list(self._writing):
            self.end(slot, commit=True, flush=True)
        for transaction in [each for each in self.world.postgres.open if each.owner is None]:
            self.world.postgres.rollback(transaction)
        for process in self.world.processes.values():
            process.paused = False
        until = self.world.time + HEALED_WITHIN
        while True:
            self.flow(2.0)
            self.promises.check()
            try:
                self.promises.in_the_end()
            except BrokenPromise:
                if self.world.time >= until:
                    raise
            else:
                return

    def close(self) -> None:
        """End all processes."""
        for process in self.world.processes.values():
            process.kill(sent=False)

