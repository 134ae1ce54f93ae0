"""What the servers say of the whole installation, as metrics: backlog, lag, streams.

Every relay shows it, leader or not. Read when it is scraped, and kept for a few seconds; what a server that is away
would tell is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import psycopg
import redis
from prometheus_client.core import Metric

from outbox import database
from outbox.admin import HandlerStatus, Status, status
from outbox.admin.streams import Stream, opened, streams
from outbox.errors import OutboxError
from outbox.families import counter, gauge
from outbox.fresh import Fresh
from outbox.settings import Settings

KEEP = 5.0
"""Seconds for which what was read is shown."""

WITHIN = 4.0
"""Seconds that a server gets to tell; a scrape takes no longer, whatever happens to both."""

LOOK_AT = 10_000
"""Rows that each count looks at. Beyond that a gauge stays where it is, and the ages tell."""

STATEMENT_TIMEOUT = "3s"


@dataclass(frozen=True)
class Overview:
    """What PostgreSQL says, how often something was done by hand, and how many deliveries were put back so."""

    status: Status
    actions: dict[str, int]
    replayed: int


class Installation:
    """Gauges of everything that is in PostgreSQL and Redis, for a registry of prometheus-client.

    >>> registry.register(Installation(settings))
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = settings.libpq_url(direct=True)
        self._overview = Fresh(self._ask_postgresql, keep=KEEP, within=WITHIN)
        self._streams = Fresh(self._ask_redis, keep=KEEP, within=WITHIN)

    def describe(self) -> list[Metric]:
        """Nothing, so that registering asks no server."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics, by what the servers say now."""
        overview = self._overview.get()
        known = self._streams.get() if overview is not None else None
        answered = {("postgresql",): overview is not None, ("redis",): known is not None}
        yield gauge("outbox_state_read", "Whether a server told its part of this.", answered, ("server",))
        if overview is not None:
            yield from _progress(overview.status)
            yield from _handlers(overview.status)
            yield _actions(overview.actions)
            replayed = {(): overview.replayed}
            yield counter("outbox_replayed_deliveries", "Deliveries that replays put back.", replayed)
        if known is not None:
            yield from _groups(known)

    def _ask_postgresql(self) -> Overview | None:
        schema = self._settings.schema_name
        try:
            with database.connect(self._url, application_name=f"outbox monitor {schema}") as connection:
                connection.execute(f"SET statement_timeout = '{STATEMENT_TIMEOUT}'".encode())
                found = status(connection, schema, look_at=LOOK_AT)
                rows = connection.execute(f"SELECT action, count(*) FROM {schema}.audit GROUP BY action".encode())
                actions = dict(rows.fetchall())
                query = f"SELECT count FROM {schema}.replay WHERE known_as = 'total'"
                replayed = connection.execute(query.encode()).fetchone()
                return Overview(found, actions, 0 if replayed is None else replayed[0])
        except (OutboxError, psycopg.Error):
            return None

    def _ask_redis(self) -> list[Stream] | None:
        overview = self._overview.get()
        try:
            if overview is None:
                return None
            with opened(self._settings) as client:
                return streams(client, self._settings.prefix, overview.status.handlers)
        except (redis.RedisError, OSError):
            return None


def _progress(found: Status) -> Iterator[Metric]:
    backlog = found.unpublished.value
    yield gauge("outbox_backlog_events", f"Committed events not published yet; up to {LOOK_AT}.", backlog)
    yield gauge("outbox_backlog_age_seconds", "Age of the oldest; 0 without any.", _seconds(found.unpublished_age))
    yield gauge(
        "outbox_oldest_eligible_age_seconds",
        "How long the oldest event waits that could have been run by now; 0 without any.",
        _seconds(found.oldest_eligible_age),
    )
    yield gauge("outbox_standby_relays", "Relays that wait to lead.", len(found.standbys))


SHARED = f"counted up to this handler's part of {LOOK_AT}, but to 200"
_HANDLERS: tuple[tuple[str, str, Callable[[datetime, HandlerStatus], float]], ...] = (
    ("lag_events", f"Events without any outcome; {SHARED}.", lambda at, handler: handler.lag.value),
    (
        "oldest_eligible_age_seconds",
        "How long the oldest waits that could have been run by now; 0 without any.",
        lambda at, handler: _since(handler.oldest_eligible_at, at),
    ),
    ("workers", "Live worker processes that serve it.", lambda at, handler: handler.workers),
    ("retrying", f"Deliveries to be tried again; {SHARED}.", lambda at, handler: handler.retrying.value),
    ("dead", f"Dead letters not replayed; {SHARED}.", lambda at, handler: handler.dead.value),
    ("seen_age_seconds", "Since a worker announced the handler.", lambda at, handler: _since(handler.last_seen, at)),
    ("paused", "1 while it is paused.", lambda at, handler: handler.paused),
    (
        "attached",
        "1 while it reads the main stream, else 0.",
        lambda at, handler: handler.state == "attached",
    ),
)


def _handlers(found: Status) -> Iterator[Metric]:
    for name, says, value in _HANDLERS:
        values = {(handler.name, handler.event_name): value(found.at, handler) for handler in found.handlers}
        yield gauge(f"outbox_handler_{name}", says, values, ("handler", "event_name"))


def _since(moment: datetime | None, now: datetime) -> float:
    return _seconds(None if moment is None else now - moment)


def _seconds(age: timedelta | None) -> float:
    return 0.0 if age is None else max(0.0, age.total_seconds())


def _actions(actions: dict[str, int]) -> Metric:
    values = {(action,): count for action, count in ({"replay": 0} | actions).items()}
    return counter("outbox_actions", "What was done by hand, by the audit table.", values, ("action",))


def _groups(known: list[Stream]) -> Iterator[Metric]:
    lengths = {(stream.key,): stream.length for stream in known}
    pending = {(stream.key, stream.handler): stream.pending for stream in known if stream.pending is not None}
    lag = {(stream.key, stream.handler): stream.lag for stream in known if stream.lag is not None}
    yield gauge("outbox_stream_length", "Entries in a stream.", lengths, ("stream",))
    yield gauge("outbox_group_pending", "Entries that workers hold.", pending, ("stream", "handler"))
    yield gauge("outbox_group_lag", "Entries given to no worker yet, where Redis knows it.", lag, ("stream", "handler"))
