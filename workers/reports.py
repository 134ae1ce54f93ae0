"""One port for all processes of a worker: the supervisor asks its children over a pipe, and answers for them.

A child's numbers have the label `process`. What a child does not tell in time is left out.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import count
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from outbox.families import counter, gauge
from outbox.health import STUCK_AFTER, Findings
from outbox.monitor import served

if TYPE_CHECKING:
    from workers.monitoring import Pages

WITHIN = 4.0
"""Seconds that all children together get to answer; a little more than each has for asking its servers."""


def answer(pages: Pages, descriptor: int) -> None:
    """Answer the supervisor at the other end of this pipe, from a thread."""
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    answers: dict[str, Callable[[], Any]] = {
        "metrics": lambda: list(pages.registry.collect()),
        "live": pages.live,
        "ready": pages.ready,
    }
    threading.Thread(target=_serve, args=(connection, answers), name="outbox reports", daemon=True).start()


def _serve(connection: Connection, answers: dict[str, Callable[[], Any]]) -> None:
    try:
        while True:
            number, what = connection.recv()
            connection.send((number, answers[what]()))
    except (EOFError, OSError):
        # The supervisor is gone, and this process ends for it.
        return


class Reports:
    """The supervisor's side: a collector for a registry, and both checks."""

    def __init__(self) -> None:
        self._pipes: dict[int, Connection] = {}
        self._heard: dict[int, float] = {}
        self._numbers = count()
        self._crashes: dict[int, int] = {}
        self._asking = threading.Lock()

    def open(self, process: int) -> Connection:
        """A pipe for a child that is about to be started, in place of that of its predecessor; gives the child's end,
        which is to be closed here when the child has it."""
        ours, theirs = Pipe()
        with self._asking:
            former = self._pipes.get(process)
            self._pipes[process], self._heard[process] = ours, time.monotonic()
            self._crashes.setdefault(process, 0)
            if former is not None:
                former.close()
        return theirs

    def crashed(self, process: int) -> None:
        """A child has crashed."""
        self._crashes[process] += 1

    def ask(self, what: str) -> dict[int, Any]:
        """What the children say, by number; None for one that says nothing in time."""
        with self._asking:
            number, deadline = next(self._numbers), time.monotonic() + WITHIN
            for pipe in self._pipes.values():
                try:
                    pipe.send((number, what))
                except OSError:
                    continue
            return {process: self._hear(process, pipe, number, deadline) for process, pipe in self._pipes.items()}

    def _hear(self, process: int, pipe: Connection, number: int, deadline: float) -> Any:
        try:
            while pipe.poll(max(0.0, deadline - time.monotonic())):
                answered, answer = pipe.recv()
                # An earlier question's may come late.
                if answered == number:
                    self._heard[process] = time.monotonic()
                    return answer
        except (EOFError, OSError):
            pass
        return None

    def serve(self, host: str, port: int) -> AbstractContextManager[int]:
        """Serve the pages of all while the context lasts; gives the port. Raises `UnusableError`."""
        registry = CollectorRegistry()
        registry.register(self)
        return served(host, port, registry, live=self.live, ready=self.ready)

    def collect(self) -> Iterator[Metric]:
        """The children's metrics, each sample with its process."""
        merged: dict[str, Metric] = {}
        told = self.ask("metrics")
        for process, families in told.items():
            for family in families or ():
                whole = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    whole.samples.append(sample._replace(labels=sample.labels | {"process": str(process)}))
        yield from merged.values()
        up = {(str(process),): families is not None for process, families in told.items()}
        yield gauge("outbox_worker_process_up", "1 for a process that answers.", up, ("process",))
        crashes = {(str(process),): times for process, times in self._crashes.items()}
        yield counter("outbox_worker_crashes", "Processes that ended badly and were replaced.", crashes, ("process",))

    def describe(self) -> list[Metric]:
        """Nothing, so that registering asks nobody."""
        return []

    def live(self) -> Findings:
        """Whether the loop of each child turns. One that starts again, or is slow to answer, is given time."""
        now = time.monotonic()
        found: Findings = {}
        for process, findings in self.ask("live").items():
            if findings is None:
                silent = now - self._heard[process] > STUCK_AFTER
                findings = {"answer": f"none for {STUCK_AFTER:.0f} s" if silent else None}
            found |= _of(process, findings)
        return found

    def ready(self) -> Findings:
        """Whether each child is at work."""
        found: Findings = {}
        for process, findings in self.ask("ready").items():
            found |= _of(process, {"answer": "none"} if findings is None else findings)
        return found


def _of(process: int, findings: Findings) -> Findings:
    return {f"process {process}, {name}": wrong for name, wrong in findings.items()}
