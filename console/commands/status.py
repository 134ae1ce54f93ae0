"""`outbox status`: how far everything is, whether a relay or worker is at it, and what happened to one event."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from console import options
from console.commands.selection import read_ids
from console.listing import Form, Output, note, say, show_object, span, table

if TYPE_CHECKING:
    from outbox.admin import Status
    from outbox.settings import Settings

SEEN_WITHIN = timedelta(seconds=30)
"""A handler that no worker has announced for so long is not being served."""


class Role(StrEnum):
    """What `--check` asks about."""

    RELAY = "relay"
    WORKER = "worker"


def status(
    id: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]", help="One event: what happened to it and what it waits for.", show_default=False
        ),
    ] = None,
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
    """Show how far the relay and every handler are, and who is at work; or what happened to one event.

    With an id: one time line from its commit to every handler's outcome, and
    what it waits for if it waits. Exit 1 if nobody knows the id.

    LAG counts a handler's events without any outcome; OLDEST is how long the
    oldest waits that could have been run. Large numbers are estimates, shown
    as ≈.

    \b
    outbox status
    outbox status 0197b6b0-5d3e-7c2a-9f00-3d2b6c1a7e55
    outbox status -o json | jq .oldest_eligible_age
    outbox status --check relay
    """
    from console import overview
    from outbox import admin

    if id is not None and check is not None:
        raise typer.BadParameter("--check is about relay and workers, not about an event")
    chosen = read_ids([id]) if id is not None else None
    settings = options.settings(database_url=database_url, redis_url=redis_url, schema_name=schema, prefix=prefix)
    if check is not None:
        trouble = unhealthy(admin.status(settings, look_at=1), check)
        note(trouble or f"{check}: fine")
        raise typer.Exit(1 if trouble else 0)
    if chosen is not None:
        _tell(settings, chosen[0], output)
        return
    seen = overview.look(settings)
    if output is not Form.TABLE:
        show_object(overview.described(seen), output)
        return
    for line in overview.lines(seen):
        say(line)
    if not seen.status.handlers:
        note("no handler is registered yet; start `outbox worker MODULE:APP`")
    for headings, rows in (overview.handlers(seen), overview.streams(seen), overview.workers(seen)):
        if rows:
            say()
            table(headings, rows)


def _tell(settings: Settings, id: UUID, output: Form) -> None:
    from console import timeline
    from outbox import admin

    story = admin.story(settings, id)
    places, away = timeline.look(settings, story)
    if output is Form.TABLE:
        timeline.show(story, places, away)
    else:
        show_object(timeline.described(story, places, away), output)
    if story.state == "unknown":
        raise typer.Exit(1)


def unhealthy(found: Status, role: Role) -> str | None:
    """What is wrong with the relay or the workers, or None."""
    if role is Role.RELAY:
        return None if found.leader else "relay: none leads"
    if not found.handlers:
        return "worker: no handler is registered"
    silence = found.at - max(handler.last_seen for handler in found.handlers)
    return f"worker: none was seen for {span(silence)}" if silence > SEEN_WITHIN else None
