"""How far everything is, as `outbox status` and `outbox top` show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from console.listing import cell, place, span

if TYPE_CHECKING:
    from outbox.admin import HandlerStatus, Hold, Leader, Status
    from outbox.admin.streams import Stream
    from outbox.settings import Settings

Heading = tuple[str, ...]
Table = tuple[Heading, list[tuple[Any, ...]]]

HANDLERS = ("HANDLER", "EVENT", "STATE", "WORKERS", "LAG", "OLDEST", "IN FLIGHT", "RETRYING", "DEAD", "LAST SEEN")
STREAMS = ("STREAM", "LENGTH", "HANDLER", "UNREAD", "PENDING", "LAST DELIVERED")
WORKERS = ("WORKER", "SERVES", "FOR", "SEEN")


@dataclass(frozen=True)
class Overview:
    """The database's side, and Redis': `streams` is None and `away` says why when Redis could not be asked."""

    status: Status
    streams: Sequence[Stream] | None
    away: str | None = None
    holds: Sequence[Hold] = ()

    def in_flight(self, handler: HandlerStatus) -> int | None:
        """Deliveries that workers hold of a handler, run or not yet; None when Redis cannot be asked."""
        if self.streams is None:
            return None
        return handler.running + sum(s.pending or 0 for s in self.streams if s.handler == handler.name)


def look(settings: Settings) -> Overview:
    """Read both sides. Raises what `outbox.admin.status` raises; without Redis it is the database's side alone."""
    import redis

    from outbox import admin
    from outbox.admin.streams import opened, streams

    status, holds = admin.status(settings), admin.holds(settings)
    try:
        with opened(settings) as client:
            return Overview(status, streams(client, settings.prefix, status.handlers), holds=holds)
    except redis.RedisError as error:
        return Overview(status, None, str(error), holds)


def facts(seen: Overview) -> list[tuple[str, str]]:
    """The outbox as a whole, line by line."""
    status = seen.status
    position = "–" if status.position is None else place(status.position)
    ticked = "" if status.last_tick_age is None else f", last tick {span(status.last_tick_age)} ago"
    waiting = "" if status.unpublished_age is None else f", the oldest for {span(status.unpublished_age)}"
    oldest = status.oldest_eligible_age
    alive = f"{len(status.workers)} alive" if status.workers else "none is alive"
    return [
        ("schema", status.schema),
        ("relay", _leading(status.leader)),
        ("standby", ", ".join(s.address or f"session {s.pid}" for s in status.standbys) or "none"),
        ("position", f"{position}{ticked}"),
        ("events", f"{status.events} committed, {status.unpublished} unpublished{waiting}"),
        ("oldest", "nothing waits" if oldest is None else f"an event that could be run waits for {span(oldest)}"),
        (
            "published",
            f"{rate(status.published_minute, 60)} in the last minute, {rate(status.published_minutes, 300)} in five",
        ),
        ("workers", alive),
        ("dead", str(status.dead)),
        ("redis", f"away: {seen.away}" if seen.streams is None else _fill(seen.streams)),
        *(("paused", paused(hold)) for hold in seen.holds),
    ]


def paused(hold: Hold) -> str:
    """What is held back, since when, by whom and why."""
    why = f": {hold.reason}" if hold.reason else ""
    return f"{hold.what} {hold.name}".strip() + f" since {cell(hold.since)} by {hold.actor}{why}"


def _leading(leader: Leader | None) -> str:
    if leader is None:
        return "none leads"
    if not leader.listens:
        wakes = "LISTEN is dead: a pooler stands between, set OUTBOX_RELAY_DATABASE_URL to the server"
    else:
        wakes = {True: "LISTEN wakes it", False: "polls", None: "LISTEN is on"}[leader.asleep]
    return f"{leader.name or leader.application_name} leads (session {leader.pid}), {wakes}"


def _fill(streams: Sequence[Stream]) -> str:
    lengths = {stream.key: stream.length for stream in streams}
    return f"streams: {len(lengths):,}, entries in them: {sum(lengths.values()):,}"


def rate(count: int, seconds: int) -> str:
    """So many events in so many seconds, as a rate."""
    each = count / seconds
    return f"{each:,.0f}/s" if each >= 10 or not each else f"{each:,.1f}/s"


def handlers(seen: Overview) -> Table:
    """A row for each handler."""
    at = seen.status.at
    rows = [
        (
            handler.name,
            handler.event_name,
            f"{_state(handler)}, paused" if handler.paused else _state(handler),
            handler.workers,
            str(handler.lag),
            None if handler.oldest_eligible_at is None else at - handler.oldest_eligible_at,
            seen.in_flight(handler),
            str(handler.retrying),
            str(handler.dead),
            f"{span(at - handler.last_seen)} ago",
        )
        for handler in seen.status.handlers
    ]
    return HANDLERS, rows


def _state(handler: HandlerStatus) -> str:
    return {"attached": "live", "detached": "catching up", "new": "new"}[handler.state]


def streams(seen: Overview) -> Table:
    """A row for each stream and handler that reads it."""
    found = seen.streams or ()
    return STREAMS, [(s.key, s.length, s.handler, s.lag, s.pending, s.last_delivered) for s in found]


def workers(seen: Overview) -> Table:
    """A row for each worker process that lives."""
    at = seen.status.at
    rows = [
        (w.name, ", ".join(w.handlers), at - w.started_at, f"{span(at - w.seen_at)} ago") for w in seen.status.workers
    ]
    return WORKERS, rows


def lines(seen: Overview) -> list[str]:
    """`facts` as they are printed."""
    return [f"{name:<10}{cell(fact)}" for name, fact in facts(seen)]


def described(seen: Overview) -> dict[str, Any]:
    """The same as JSON values; lengths of time are in seconds.

    A count `x` has `x_exact` beside it, and `x_estimate` when it is not exact.
    """
    found = seen.status
    return {
        "schema": found.schema,
        "at": found.at,
        "position": None if found.position is None else place(found.position),
        "last_tick_at": found.last_tick_at,
        "last_tick_age": found.last_tick_age,
        "leader": None if found.leader is None else asdict(found.leader),
        "standbys": [asdict(standby) for standby in found.standbys],
        **_counts(found, "events", "unpublished", "dead"),
        "oldest_unpublished_at": found.oldest_unpublished_at,
        "unpublished_age": found.unpublished_age,
        "oldest_eligible_age": found.oldest_eligible_age,
        "published_per_second": {"minute": found.published_minute / 60, "five_minutes": found.published_minutes / 300},
        "workers": [asdict(worker) for worker in found.workers],
        "handlers": [_handler(seen, handler) for handler in found.handlers],
        "streams": None if seen.streams is None else [_stream(stream) for stream in seen.streams],
        "redis_error": seen.away,
        "holds": [asdict(hold) for hold in seen.holds],
    }


def _handler(seen: Overview, handler: HandlerStatus) -> dict[str, Any]:
    return {
        "name": handler.name,
        "event_name": handler.event_name,
        "state": handler.state,
        "paused": handler.paused,
        "workers": handler.workers,
        "done_to": None if handler.done_to is None else place(handler.done_to),
        "fed": None if handler.fed is None else place(handler.fed),
        **_counts(handler, "lag", "retrying", "dead"),
        "in_flight": seen.in_flight(handler),
        "oldest_waiting_at": handler.oldest_waiting_at,
        "overdue_since": handler.overdue_since,
        "oldest_eligible_age": handler.oldest_eligible_at and seen.status.at - handler.oldest_eligible_at,
        "last_seen": handler.last_seen,
    }


def _stream(stream: Stream) -> dict[str, Any]:
    last = stream.last_delivered
    return {**asdict(stream), "last_delivered": None if last is None else place(last)}


def _counts(source: object, *names: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        count = getattr(source, name)
        found |= {name: count.value, f"{name}_exact": count.exact}
        if not count.exact:
            found[f"{name}_estimate"] = count.estimate
    return found
