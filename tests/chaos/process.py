"""One of our own programs: forked from a process that has loaded everything, killed, and forked again."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.process import BaseProcess

from tests.chaos.programs import Part, perform

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.chaos.tether"])


class Program:
    """One of our own programs: started, killed and started again under one name."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.process: BaseProcess | None = None
        self.wanted = False
        """Whether it is to run: what ends by itself is started again."""
        self.armed = False
        """Whether the process that runs was told to die, or to stand still, between two steps."""
        self.told = False
        """Whether it was told to end."""

    def start(self) -> None:
        """Start it, unless it runs."""
        self.wanted = True
        if not self.running:
            self.armed, self.told = bool(self.part.failpoints), False
            self.process = _forks.Process(target=perform, args=(self.part,), name=self.part.name, daemon=True)
            self.process.start()

    @property
    def running(self) -> bool:
        """Whether there is a process, be it one that stands still."""
        return self.process is not None and self.process.is_alive()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.process is not None and self.process.pid is not None and self.running:
            os.kill(self.process.pid, number)

    def stand_still(self) -> None:
        """SIGSTOP."""
        self.send(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT, also for who stopped itself."""
        self.send(signal.SIGCONT)

    def tell_to_end(self) -> None:
        """SIGTERM."""
        self.wanted, self.told = False, True
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.wanted = False
        self.send(signal.SIGKILL)
        self.await_end(10.0)

    def await_end(self, seconds: float) -> bool:
        """Wait until it has ended; whether it has."""
        if self.process is not None:
            self.process.join(seconds)
        return not self.running
