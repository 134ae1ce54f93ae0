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
DISTURBANCES = ("kill", "kill, what it sent arrives", "pause", "resume", "stop", "lose a call", "lose a reply")
HARMS = (
    "PostgreSQL is away", "Redis is away", "back", "a session ends", "PostgreSQL crashes", "a replica falls behind",
    "the replica takes over", "groups are destroyed", "groups are destroyed", "streams are deleted",
    "streams are trimmed", "consumers are deleted",
)  # fmt: skip
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
        if transaction not in server.open:
            # It was lost with its server, and its locks with it.
            transaction = None
        mine = transaction is not None and any(event.key == key for event in transaction.events)
        if key and server.locked(key) and not mine:
            return
        if transaction is None:
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

    def disturb(self, name: str, what: str, pick: int) -> None:
        """One of `DISTURBANCES`, to one process."""
        process = self.process(name)
        if what.startswith("kill"):
            # Another one is started in its place.
            process.kill(sent=what.endswith("arrives"))
            self._start(name)
        elif what == "pause":
            process.paused = True
        elif what == "resume":
            process.paused = False
        elif process.paused:
            return
        elif what == "stop":
            if isinstance(process, Working):
                process.stop()
        else:
            process.wake()
            asked = [call for call in process.waiting if call.server != "nobody"]
            if asked:
                fate = Fate.LOST if what == "lose a call" else Fate.UNANSWERED
                self.world.perform(process, asked[pick % len(asked)], fate)

    def flow(self, seconds: float) -> None:
        self.world.flow(seconds)
        self._restart()

    def _restart(self) -> None:
        for name, process in list(self.world.processes.items()):
            if isinstance(process, Working) and process.over:
                process.kill(sent=False)
                self._start(name)

    # Servers

    def harm(self, what: str, number: int) -> None:
        """One of `HARMS`, to one server; to all streams, or to one of them."""
        postgres, server = self.world.postgres, self.world.redis
        match what:
            case "PostgreSQL is away" | "Redis is away":
                self.world.away.add("postgres" if what.startswith("P") else "redis")
            case "back":
                self.world.away.clear()
            case "a session ends":
                for session in postgres.sessions[number % 4 : number % 4 + 1]:
                    postgres.end_session(session)
            case "PostgreSQL crashes":
                postgres.crash()
            case "a replica falls behind":
                self._copy = server.copy()
            case "the replica takes over":
                self.promises.harmed = True
                server.become(self._copy)
            case "groups are destroyed":
                # They are made again where all was done, and given what the streams still have from there on.
                for stream in map(server.streams.__getitem__, self._keys(number)):
                    pending = {at for group in stream.groups.values() for at in group.pending}
                    self.promises.harmed |= not pending <= stream.entries.keys()
                    stream.groups.clear()
            case _:
                self.promises.harmed = True
                for key in self._keys(number):
                    self._harm_stream(what, key)

    def _harm_stream(self, what: str, key: str) -> None:
        server = self.world.redis
        if what == "streams are deleted":
            server.delete(key)
        elif what == "streams are trimmed":
            last = server.streams[key].last
            server.trim(key, Position(last.tick, last.seq + 1))
        elif what == "consumers are deleted":
            for name, group in server.streams[key].groups.items():
                for consumer in list(group.consumers):
                    server.delete_consumer(key, name, consumer)

    def _keys(self, number: int) -> list[str]:
        keys = sorted(self.world.redis.streams)
        return keys[number : number + 1] or keys

    # The end

    def heal(self) -> None:
        """No more faults: everything must drain."""
        self.world.away.clear()
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
