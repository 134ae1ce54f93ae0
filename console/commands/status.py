"""`outbox status`: how far everything is, and whether a relay or worker is at it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from console import options
from console.listing import Form, Output, cell, note, say, show_object, span, table

if TYPE_CHECKING:
    from console.streams import Stream
    from outbox.admin import HandlerStatus, Hold, Status

SEEN_WITHIN = timedelta(seconds=30)
"""A handler that no worker has announced for so long is not being served."""


class Role(StrEnum):
    """What `--check` asks about."""

    RELAY = "relay"
    WORKER = "worker"


def status(
    check: Annotated[
        Role | None,
        typer.Option(
            "--check", help="Exit 1 unless a relay leads, or a worker was seen in the last 30 s. For health checks."
        ),
    ] = None,
    output: Output = Form.TABLE,
    database_url: options.DatabaseUrl = None,
    redis_url: options.RedisUrl = None,
    schema: options.Schema = None,
    prefix: options.Prefix = None,
) -> None:
    """Show how far the relay and every handler are.

    LAG counts a handler's events without any outcome. Counting stops at
    100,000 rows, shown as ≥.

    \b
    outbox status
    outbox status -o json | jq .unpublished
    outbox status --check relay
    """
    from outbox import admin

    settings = options.settings(database_url=database_url, redis_url=redis_url, schema_name=schema, prefix=prefix)
    found = admin.status(settings, look_at=1 if check else admin.LOOK_AT)
    if check is not None:
        trouble = unhealthy(found, check)
        note(trouble or f"{check}: fine")
        raise typer.Exit(1 if trouble else 0)
    streams, away = _streams(settings, found)
    holds = admin.holds(settings)
    if output is Form.TABLE:
        _print(found, streams, away, holds)
    else:
        show_object({**described(found, streams, away), "holds": [asdict(hold) for hold in holds]}, output)


def unhealthy(found: Status, role: Role) -> str | None:
    """What is wrong with the relay or the workers, or None."""
    if role is Role.RELAY:
        return None if found.leader else "relay: none leads"
    if not found.handlers:
        return "worker: no handler is registered"
    latest = max(handler.last_seen for handler in found.handlers)
    if found.at - latest > SEEN_WITHIN:
        return f"worker: none was seen for {span(found.at - latest)}"
    return None


def described(found: Status, streams: list[Stream] | None, away: str | None) -> dict[str, Any]:
    """The status as JSON values. Counts are numbers with `<name>_exact` beside them, lengths of time are in seconds."""
    return {
        "schema": found.schema,
        "at": found.at,
        "position": None if found.position is None else str(found.position),
        "last_tick_at": found.last_tick_at,
        "last_tick_age": found.last_tick_age,
        "leader": None if found.leader is None else asdict(found.leader),
        **_counts(found, "events", "unpublished"),
        "oldest_unpublished_at": found.oldest_unpublished_at,
        "unpublished_age": found.unpublished_age,
        "handlers": [_handler(handler) for handler in found.handlers],
        "streams": None if streams is None else [asdict(stream) for stream in streams],
        "redis_error": away,
    }


def paused(hold: Hold) -> str:
    """What is held back, since when, by whom and why."""
    why = f": {hold.reason}" if hold.reason else ""
    return f"{hold.what} {hold.name}".strip() + f" since {cell(hold.since)} by {hold.actor}{why}"


def _handler(handler: HandlerStatus) -> dict[str, Any]:
    return {
        "name": handler.name,
        "event_name": handler.event_name,
        "state": handler.state,
        "paused": handler.paused,
        "done_to": None if handler.done_to is None else str(handler.done_to),
        "fed": None if handler.fed is None else str(handler.fed),
        **_counts(handler, "lag", "done", "retrying", "dead"),
        "oldest_waiting_at": handler.oldest_waiting_at,
        "last_seen": handler.last_seen,
    }


def _counts(source: object, *names: str) -> dict[str, Any]:
    counts = {name: getattr(source, name) for name in names}
    return {
        key: value
        for name, count in counts.items()
        for key, value in ((name, count.value), (f"{name}_exact", count.exact))
    }


def _streams(settings: Any, found: Status) -> tuple[list[Stream] | None, str | None]:
    import redis

    from console.streams import streams

    try:
        return streams(settings, found.handlers), None
    except redis.RedisError as error:
        return None, str(error)


def _print(found: Status, streams: list[Stream] | None, away: str | None, holds: list[Hold]) -> None:
    leader = found.leader
    position = "–" if found.position is None else str(found.position)
    waiting = f", the oldest for {span(found.unpublished_age)}" if found.unpublished_age is not None else ""
    ticked = "" if found.last_tick_age is None else f", last tick {span(found.last_tick_age)} ago"
    facts = [
        ("schema", found.schema),
        ("relay", f"{leader.name or leader.application_name} leads (session {leader.pid})" if leader else "none leads"),
        ("position", f"{position}{ticked}"),
        ("events", f"{found.events} committed, {found.unpublished} unpublished{waiting}"),
        (
            "redis",
            f"away: {away}" if away else f"{sum(s.length for s in streams or [])} stream entries seen by handlers",
        ),
    ]
    facts += [("paused", paused(hold)) for hold in holds]
    for name, fact in facts:
        say(f"{name:<10}{cell(fact)}")
    if not found.handlers:
        note("no handler is registered yet; start `outbox worker MODULE:APP`")
        return
    say()
    table(
        ("HANDLER", "EVENT", "STATE", "DONE TO", "LAG", "DONE", "RETRYING", "DEAD", "LAST SEEN"),
        [
            (
                handler.name,
                handler.event_name,
                f"{handler.state}, paused" if handler.paused else handler.state,
                handler.done_to,
                *map(str, (handler.lag, handler.done, handler.retrying, handler.dead)),
                f"{span(found.at - handler.last_seen)} ago",
            )
            for handler in found.handlers
        ],
    )
    if streams:
        say()
        table(
            ("STREAM", "HANDLER", "LENGTH", "PENDING", "CONSUMERS", "LAST DELIVERED"),
            [(s.key, s.handler, s.length, s.pending, s.consumers, s.last_delivered) for s in streams],
        )
