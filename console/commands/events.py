"""`outbox events`: the log, and what came of it."""

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
from console.listing import Form, Output, note, show

if TYPE_CHECKING:
    from outbox.admin import LoggedEvent


def events(
    ids: Ids = None,
    name: Name = None,
    handler: Handler = None,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    where: Where = None,
    error: Error = None,
    group: Group = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    look_at: LookAt = LISTED,
    output: Output = Form.TABLE,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
) -> None:
    """List events, the latest first, with what came of them at each handler.

    JSON shows payloads, headers and errors too. An event without deliveries
    is not published yet, or on its way.

    \b
    outbox events --name send_email --since 1h
    outbox events --where payload.user_id=7 --error refused
    outbox events 0197b6b0-5d3e-7c2a-9f00-3d2b6c1a7e55 -o json
    """
    which = selected(
        ids=ids, name=name, handler=handler, key=key, since=since, until=until, where=where, error=error, group=group
    )
    from outbox import admin

    found = admin.events(
        options.settings(database_url=database_url, schema_name=schema),
        which,
        limit=limit,
        look_at=look_at,
    )
    columns = {"created_at": "CREATED", "id": "ID", "name": "EVENT", "key": "KEY", "outcome": "DELIVERIES"}
    rows = [_row(event) for event in found]
    if output is Form.TABLE:
        rows = [{**row, "outcome": _outcome(event)} for row, event in zip(rows, found, strict=True)]
    show(rows, columns, output, empty="no event fits")
    tell_reach(found.reached, look_at)
    missing = set(which.ids or ()) - {event.id for event in found}
    if missing and len(found) < limit:
        note(f"no event has the id {', '.join(map(str, sorted(missing)))}")
        raise typer.Exit(1 if not found else 3)


def _row(event: LoggedEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "name": event.name,
        "key": event.key,
        "created_at": event.created_at,
        "payload": json.loads(event.payload_json),
        "headers": event.headers,
        "deliveries": [asdict(delivery) for delivery in event.deliveries],
    }


def _outcome(event: LoggedEvent) -> str | None:
    return ", ".join(f"{d.handler}: {d.state}" for d in event.deliveries) or None
