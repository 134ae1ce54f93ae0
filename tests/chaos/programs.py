"""The programs under test as processes: forked from one that has loaded everything, or a start would cost a second."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

import relay.service
import workers
from outbox import telemetry
from outbox.failpoints import Armed, Failpoint, reach
from outbox.settings import Settings
from tests.chaos import knobs, mutants, supervised, tasks
from tests.chaos.history import History
from tests.chaos.writer import Writer


@dataclass(frozen=True)
class Part:
    """What a program is told when it starts."""

    name: str
    database_url: str
    redis_url: str
    folder: Path
    """Where histories and logs are."""
    lease: float = 1.5
    concurrency: int = 20
    rate: float = 20.0
    slowness: float = 1.0
    version: int = 1
    children: bool = False
    """Whether there is a handler in child processes."""
    supervised: bool = False
    """Two workers under a supervisor."""
    knobs: dict[str, int] = field(default_factory=dict)
    failpoints: str = ""
    mutant: str = ""

    @property
    def settings(self) -> Settings:
        """The settings of a relay or worker."""
        return Settings(database_url=self.database_url, redis_url=self.redis_url, _env_file=None)


def perform(part: Part) -> None:
    """Be the program that the part's name says, to its end. The first thing in a new process."""
    die_with_parent()
    log = os.open(part.folder / f"{part.name}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    telemetry.configure("info", "logfmt")
    knobs.turn(part.knobs)
    mutants.become(part.mutant)
    if part.failpoints:
        _arm(part.failpoints)
    sys.exit(_ROLES[part.name.partition("-")[0]](part))


def _arm(given: str) -> None:
    """Put failpoints into what is loaded already."""
    armed = Armed([Failpoint.parse(given)])
    for module in list(sys.modules.values()):
        if getattr(module, "reach", None) is reach:
            module.reach = armed.reach  # type: ignore[attr-defined]


def die_with_parent() -> None:
    """End this process when its parent does, however that ends (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))


def _relay(part: Part) -> int:
    return relay.service.run(part.settings)


def _worker(part: Part) -> int:
    history = part.folder / f"{part.name}.jsonl"
    os.environ[tasks.HISTORY] = str(history)
    if part.supervised:
        return supervised.supervise(part.settings, part.lease, part.slowness, part.version, part.children, part.knobs)
    tasks.tell(History(history), part.slowness)

    async def work() -> None:
        worker = workers.Worker(
            tasks.app(part.version, children=part.children),
            part.settings,
            concurrency=part.concurrency,
            lease=part.lease,
            heartbeat=part.lease / 4,
            grace=3.0,
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.request_stop)
        await worker.run()

    uvloop.run(work())
    return 0


def _writer(part: Part) -> int:
    writer = Writer(part.name, part.database_url, part.folder, rate=part.rate)
    signal.signal(signal.SIGTERM, lambda number, frame: writer.over.set())
    writer.run()
    return 0


_ROLES: dict[str, Callable[[Part], int]] = {"relay": _relay, "worker": _worker, "writer": _writer}
