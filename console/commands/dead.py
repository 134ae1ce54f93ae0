"""`outbox dead`: what failed for good."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from console import options
from console.commands.selection import (
    LISTED,
    Error,
    Group,
    Handler,
    Ids,
    Key,
    LookAt,
    Name,
    Since,
    Until,
    Where,
    selected,
    tell_reach,
)
from console.listing import Form, Output, cell, note, say, show

if TYPE_CHECKING:
    from outbox.admin import DeadLetter

COLUMNS = {
    "died_at": "DIED",
    "event_id": "EVENT ID",
    "handler": "HANDLER",
    "event": "EVENT",
    "key": "KEY",
    "attempts": "ATTEMPTS",
    "error": "ERROR",
}
GROUPS = {
    "count": "COUNT",
    "group": "GROUP",
    "handler": "HANDLER",
    "event_name": "EVENT",
    "latest_at": "LATEST",
    "error": "LATEST ERROR",
}


def dead(
    ids: Ids = None,
    name: Name = None,
    handler: Handler = None,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    where: Where = None,
    error: Error = None,
    group: Group = None,
    groups: Annotated[bool, typer.Option("--groups", help="Count them by error, numbers and ids left out.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    look_at: LookAt = LISTED,
    output: Output = Form.TABLE,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
) -> None:
    """List dead letters, the latest first: deliveries that failed for good and were not put back.

    With ids, each letter's traceback follows. JSON shows it too, with payload and headers. `outbox replay` runs them
    again.

    \b
    outbox dead --handler send_email --since 2h
    outbox dead --groups --since 1d
    outbox dead --where payload.user_id=7 -o json
    """
    from outbox import admin

    which = selected(
        ids=ids, name=name, handler=handler, key=key, since=since, until=until, where=where, error=error, group=group
    )
    settings = options.settings(database_url=database_url, schema_name=schema)
    if groups:
        counted = admin.error_groups(settings, which, limit=limit, look_at=look_at)
        show([asdict(each) for each in counted], GROUPS, output, empty="no dead letter fits")
        tell_reach(counted.reached, look_at)
        return
    found = admin.dead_letters(settings, which, limit=limit + 1, look_at=look_at)
    shown = found[:limit]
    show([row(letter) for letter in shown], COLUMNS, output, empty="no dead letter fits")
    if ids and output is Form.TABLE:
        for letter in shown:
            show_traceback(letter)
    if len(found) > limit:
        note(f"more than {limit:,} fit; see --limit")
    tell_reach(found.reached, look_at)


def show_traceback(letter: DeadLetter) -> None:
    """Print where a delivery failed, under a heading that says which."""
    say()
    say(f"{letter.event_id} at {letter.handler}")
    for line in (letter.traceback or letter.error).splitlines():
        say(f"  {cell(line)}")


def row(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter as JSON values."""
    return {
        "event_id": letter.event_id,
        "handler": letter.handler,
        "event": letter.event_name,
        "key": letter.key,
        "attempts": letter.attempts,
        "error": letter.error,
        "traceback": letter.traceback,
        "died_at": letter.died_at,
        "event_created_at": letter.event_created_at,
        "payload": json.loads(letter.payload_json),
        "headers": letter.headers,
    }
