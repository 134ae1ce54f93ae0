"""A relay's port: its own measures and the installation's as metrics, and whether it lives and is ready."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric

from outbox.families import counter, gauge, histogram
from outbox.health import Check, Findings, Servers
from outbox.monitor import served
from outbox.settings import Settings
from relay.installation import Installation
from relay.measures import Measures
from relay.service import Relay

DEAF = "does not LISTEN yet, or through a pooler: set OUTBOX_RELAY_DATABASE_URL to the server"


def serve(relay: Relay, settings: Settings, port: int) -> AbstractContextManager[int]:
    """Serve the relay's pages while the context lasts; gives the port. Raises `UnusableError`.

    >>> with serve(relay, settings, 9100):
    ...     relay.run()
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(Own(relay.measures, relay.wakeups))
    registry.register(Installation(settings))
    return served(
        settings.metrics_host,
        port,
        registry,
        live=relay.pulse.findings,
        ready=readiness(relay, settings),
    )


def readiness(relay: Relay, settings: Settings) -> Check:
    """Whether servers and schema are there, and nothing keeps the relay from its work."""
    servers = Servers(settings, direct=True)
    return lambda: servers.findings() | {"relay": relay.refused} | listening(relay.measures)


def listening(measures: Measures) -> Findings:
    """Whether the relay hears of what is written; a standby need not."""
    if not measures.leading:
        return {"lead": None}
    return {"lead": None, "listen": None if measures.listening else DEAF}


class Own:
    """What one relay counts of its own work, for a registry."""

    def __init__(self, measures: Measures, wakeups: Mapping[str, int]) -> None:
        self._measures = measures
        self._wakeups = wakeups

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        measures = self._measures
        yield gauge("outbox_relay_leader", "1 while this relay leads.", measures.leading)
        yield gauge(
            "outbox_relay_listening", "1 while it leads in a session that LISTENs, past any pooler.", measures.listening
        )
        published, fed = _labelled(measures.published), _labelled(measures.fed)
        yield counter("outbox_relay_published_events", "Events on main streams.", published, ("event_name",))
        yield counter("outbox_relay_fed_events", "Events on catch-up streams.", fed, ("handler",))
        yield counter("outbox_relay_wakeups", "What ended its rests.", _labelled(self._wakeups), ("source",))
        yield histogram(
            "outbox_relay_publish_seconds", "From a batch's tick to its end in Redis.", {(): measures.publish_seconds}
        )
        yield histogram("outbox_relay_batch_events", "Events of a batch.", {(): measures.batch_events})


def _labelled(counts: Mapping[str, int]) -> dict[tuple[str, ...], float]:
    return {(label,): count for label, count in list(counts.items())}
