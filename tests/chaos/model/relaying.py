"""A relay as a simulated process: the real `relay.service.Relay`, whose calls to the servers are steps of the schedule.

The relay is written with calls that block. Each of its threads is a greenlet here, which stops at a call and goes on
when the world lets it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import greenlet
import psycopg

from outbox.errors import LeadershipLostError
from outbox.settings import Settings
from relay.service import Relay
from relay.sweep import Sweep
from tests.chaos.model.blocking import Client, Connection, Line
from tests.chaos.model.postgres import Session
from tests.chaos.model.world import Call, Process, Server, World

SETTINGS = Settings(database_url="postgresql://model/model", redis_url="redis://model", _env_file=None)


class Relaying(Process):
    """A relay and its sweep."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.dead = False
        self._waiting: list[Call] = []
        self._threads: list[Thread] = []
        self._sessions: list[Session] = []
        self._lines: list[Line] = []
        self._relay = Relay(SETTINGS)
        self.spawn(self._run)

    @property
    def waiting(self) -> list[Call]:
        return self._waiting

    def wake(self) -> None:
        """Nothing happens to it by itself."""

    def kill(self, *, sent: bool) -> None:
        self.dead = True
        for line in self._lines:
            line.drop(sent=sent)
        for session in self._sessions:
            self.world.postgres.end_session(session)
        for thread in self._threads:
            thread.throw(greenlet.GreenletExit)
        self._waiting.clear()

    def spawn(self, body: Callable[[], None]) -> None:
        """Begin a thread."""
        thread = Thread(body, self)
        self._threads.append(thread)
        self._waiting.append(Call("nobody", lambda: None, lambda *_: thread.switch()))

    def call(self, server: Server, perform: Callable[[], Any], cut: Callable[[], None], at: float = 0.0) -> Any:
        """Stand still until the world has done this."""
        if self.dead:
            raise greenlet.GreenletExit
        thread = greenlet.getcurrent()
        self._waiting.append(Call(server, perform, lambda *outcome: thread.switch(*outcome), cut, at))
        result, error = thread.parent.switch()
        if error is not None:
            raise error
        return result

    def rest(self, seconds: float) -> None:
        self.call("nobody", lambda: None, lambda: None, self.world.time + seconds)

    def _run(self) -> None:
        # As `Relay.run`, without its delays between two connections.
        while True:
            try:
                self._relay._serve()
            except (psycopg.OperationalError, LeadershipLostError):
                self.rest(0.1)

    # What is put in place of what talks to servers

    def connect(self) -> Connection:
        return Connection(self)


class Thread(greenlet.greenlet):  # type: ignore[misc]
    """One of a relay's threads. Whoever began it, its calls are steps of the world."""

    def __init__(self, body: Callable[[], None], process: Relaying) -> None:
        began = greenlet.getcurrent()
        super().__init__(body, began.parent if isinstance(began, Thread) else began)
        self.process = process


def here() -> Relaying:
    """The process whose code runs."""
    process: Relaying = greenlet.getcurrent().process
    return process


class Sweeping(Sweep):
    """The sweep as a greenlet of its process."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._stop = Resting(here())  # type: ignore[assignment]

    def start(self) -> None:
        here().spawn(self.serve)

    def stop(self) -> None:
        self._stop.set()


class Resting:
    """Stands for `threading.Event` in one of the greenlets."""

    def __init__(self, process: Relaying) -> None:
        self._process = process
        self._set = False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set

    def wait(self, seconds: float) -> bool:
        if not self._set:
            self._process.rest(seconds)
        return self._set


class Doorbell:
    """Stands for the relay's: waiting is resting."""

    wakeups: Mapping[str, int] = {}

    def ring(self) -> None:
        """Rests end with the next look anyway."""

    notified = ring

    def wait(self, seconds: float, connection: Any = None) -> bool:
        here().rest(seconds)
        return False

    def close(self) -> None:
        """Nothing is held."""


class Sleep:
    """Stands for the relay's sleep: nobody notifies, so it polls."""

    asleep = False

    def __init__(self, connection: Any, schema: str) -> None:
        self.asleep = False

    def fall_asleep(self) -> None:
        self.asleep = True

    def next_poll(self) -> float:
        return here().world.time + 0.5

    def wake(self) -> None:
        self.asleep = False

    def forget_ended(self) -> None:
        """Nobody is waited for."""


class Upkeep:
    """Stands for the relay's: no partition becomes old here."""

    def __init__(self, *arguments: Any, **options: Any) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


class Clock:
    """Stands for the module `time`."""

    @staticmethod
    def monotonic() -> float:
        return here().world.time


def connect(url: str, schema: str, *, role: str = "relay") -> Connection:
    """Stands for `relay.lead.connect`."""
    return here().connect()


def replacements() -> Mapping[str, Any]:
    """What to set while relays are simulated, by its dotted name."""
    return {
        "relay.lead.connect": connect,
        "relay.service.connect": lambda url, timeout: Client(here()),
        "relay.service.Doorbell": Doorbell,
        "relay.service.Sleep": Sleep,
        "relay.service.Sweep": Sweeping,
        "relay.service.Upkeep": Upkeep,
        "relay.service.time": Clock,
        "relay.service.rebase.check": lambda connection, schema: None,
        "relay.service.eviction.warn": lambda client: None,
        "relay.append.line_to": Line,
        "relay.feed.time": Clock,
        "relay.catch_up.time": Clock,
    }
