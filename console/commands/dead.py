"""`outbox dead`: what failed for good."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from console import options
from console.commands.selection import Ids, Since, Until, read_ids, read_span
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


def dead(
    ids: Ids = None,
    handler: Annotated[str | None, typer.Option(metavar="NAME", help="Those of this handler.")] = None,
    event: Annotated[str | None, typer.Option(metavar="NAME", help="Those of events of this name.")] = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    output: Output = Form.TABLE,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
) -> None:
    """List dead letters, the latest first: deliveries that failed for good and were not put back.

    With ids, each letter's traceback follows. JSON shows it too, with payload and headers. `outbox replay` runs them
    again.

    \b
    outbox dead --handler send_email --since 2h
    outbox dead -o jsonl | jq -r .error | sort | uniq -c
    """
    from outbox import admin

    first, last = read_span(since, until)
    which = admin.Filter(
        ids=read_ids(ids),
        handler=handler,
        event=event,
        since=first,
        until=last,
    )
    settings = options.settings(database_url=database_url, schema_name=schema)
    found = admin.dead_letters(settings, which, limit=limit)
    show([row(letter) for letter in found], COLUMNS, output, empty="no dead letter fits")
    if ids and output is Form.TABLE:
        for letter in found:
            show_traceback(letter)
    if len(found) == limit:
        total = admin.count_dead_letters(settings, which)
        if total > limit:
            note(f"{limit} of {total} are shown; see --limit")


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
