"""`outbox cancel`: keep events from being run where they have not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from console import options
from console.commands.selection import read_ids
from console.confirming import confirm
from console.listing import Form, Output, note, show

if TYPE_CHECKING:
    from outbox.admin import Cancellation

Events = Annotated[list[str], typer.Argument(metavar="ID", help="Events' outbox ids.", show_default=False)]
COLUMNS = {"event_id": "EVENT ID", "event": "EVENT", "cancelled": "CANCELLED AT", "left": "TOO LATE AT"}
FAILED, PARTLY = 1, 3


def cancel(
    ids: Events,
    handler: Annotated[str | None, typer.Option(metavar="NAME", help="For this handler only.")] = None,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    reason: options.Reason = None,
    output: Output = Form.TABLE,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
) -> None:
    """Keep events from being run by the handlers that have not yet: by all, or by one.

    Also what waits for a retry, and what is scheduled for later. Where a
    worker has fetched the event already it may still run; pause the handler
    first to be sure. Exit 1 if it was too late everywhere, 3 if somewhere.

    \b
    outbox cancel 0197b6b0-5d3e-7c2a-9f00-3d2b6c1a7e55 --reason "ordered twice"
    outbox cancel 0197b6b0-5d3e-7c2a-9f00-3d2b6c1a7e55 --handler send_email --yes
    """
    from outbox import admin

    chosen = read_ids(ids) or ()
    settings = options.settings(database_url=database_url, schema_name=schema)
    found = [admin.cancel(settings, id, handler=handler, dry_run=True) for id in chosen]
    for event, name in sorted({(each.event_name, name) for each in found for name in each.unannounced}):
        note(f"no worker has announced {name} for {event}: that is for one to come, or mistyped")
    if not dry_run and any(each.cancelled or each.scheduled for each in found):
        confirm(f"Cancel {len(chosen)} event{'' if len(chosen) == 1 else 's'}?", yes=yes)
        found = [admin.cancel(settings, id, handler=handler, reason=reason) for id in chosen]
    rows = [
        {
            "event_id": each.event_id,
            "event": each.event_name,
            "cancelled": "before it was due" if each.scheduled else ", ".join(each.cancelled) or None,
            "left": ", ".join(f"{name}: {state}" for name, state in each.left.items()) or None,
        }
        if output is Form.TABLE
        else {
            "event_id": each.event_id,
            "event": each.event_name,
            "cancelled": each.cancelled,
            "left": each.left,
            "unannounced": each.unannounced,
            "scheduled": each.scheduled,
            "dry_run": dry_run,
        }
        for each in found
    ]
    show(rows, COLUMNS, output, empty="nothing to cancel")
    if dry_run:
        note("nothing was changed")
    if status := _status(found, handler):
        raise typer.Exit(status)


def _status(found: list[Cancellation], handler: str | None) -> int:
    for each in found:
        if not (each.cancelled or each.left or each.scheduled):
            note(
                f"no handler of {each.event_name} is known: name the one to come with --handler"
                if handler is None
                else f"{each.event_id} is not retained any more and not at {handler}"
            )
    done = [each for each in found if each.cancelled or each.scheduled]
    if not done:
        return FAILED
    return PARTLY if len(done) < len(found) or any(each.left for each in found) else 0
