"""A worker's port: its measures as metrics, and whether it lives and is ready. One process serves them itself; of
several the supervisor does, which asks them (`reports`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric

from outbox.families import counter, gauge, histogram
from outbox.health import Findings, Servers
from outbox.monitor import served
from outbox.settings import Settings
from workers.measures import Measures
from workers.worker import Worker


class Pages:
    """What one worker process tells."""

    def __init__(self, worker: Worker, measures: Measures, settings: Settings) -> None:
        self._worker = worker
        self._servers = Servers(settings)
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(Own(measures))

    def live(self) -> Findings:
        """Whether its loop turns."""
        return self._worker.pulse.findings()

    def ready(self) -> Findings:
        """Whether servers and schema are there, and it is at work."""
        begun = None if self._worker.started else "has not begun"
        state = "stops" if self._worker.stopping else self._worker.refused or begun
        return self._servers.findings() | {"worker": state}

    def serve(self, host: str, port: int) -> AbstractContextManager[int]:
        """Serve them while the context lasts; gives the port. Raises `UnusableError`."""
        return served(host, port, self.registry, live=self.live, ready=self.ready)


class Own:
    """What a worker counts of its own work, for a registry."""

    def __init__(self, measures: Measures) -> None:
        self._measures = measures

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        handlers, lanes = list(self._measures.handlers.items()), list(self._measures.lanes.items())
        label = ("handler",)
        outcomes = {
            (name, outcome): count for name, measures in handlers for outcome, count in measures.outcomes.items()
        }
        yield counter("outbox_worker_outcomes", "Recorded outcomes of attempts.", outcomes, ("handler", "outcome"))
        yield histogram(
            "outbox_worker_run_seconds",
            "How long runs took, with their transactions.",
            {(name,): measures.run_seconds for name, measures in handlers},
            label,
        )
        yield histogram(
            "outbox_worker_commit_to_done_seconds",
            "From an event's insertion, at the end of its transaction, until its outcome is in PostgreSQL.",
            {(name,): measures.done_seconds for name, measures in handlers},
            label,
        )
        running = {(name,): lane.running for name, lane in lanes}
        yield gauge("outbox_worker_running", "Runs that go on.", running, label)
        held = {(name,): len(lane.active) for name, lane in lanes}
        yield gauge("outbox_worker_in_flight", "Deliveries that it holds, running or not.", held, label)
