"""`outbox pause` and `outbox resume`: hold a handler, an event's handlers or the relay back, and let them go on."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, TypeAlias

import typer

from console import options
from console.confirming import confirm
from console.listing import Form, Output, say, show_object


class What(StrEnum):
    """What can be held back."""

    HANDLER = "handler"
    EVENT = "event"
    STREAM = "stream"
    RELAY = "relay"


Kind = Annotated[
    What,
    typer.Argument(
        metavar="handler|event|stream|relay", help="What; an event's stream is the event.", show_default=False
    ),
]
Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of the handler or event.", show_default=False)]


def pause(
    what: Kind,
    name: Name = None,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    reason: options.Reason = None,
    output: Output = Form.TABLE,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
) -> None:
    """Hold back a handler, all handlers of an event, or the relay, until `outbox resume`.

    Within about a second nothing new starts; what runs comes to its end.
    Nothing is lost: events wait in PostgreSQL. `outbox status` shows who
    paused what, and why.

    \b
    outbox pause handler send_email --reason "mail server is down" --yes
    outbox pause event order_placed
    outbox pause relay
    """
    from outbox import admin

    kind, named = _meant(what, name)
    settings = options.settings(database_url=database_url, schema_name=schema)
    held = next((hold for hold in admin.holds(settings) if (hold.what, hold.name) == (kind, named)), None)
    changed = held is None
    if not dry_run and changed:
        confirm(f"Pause {_words(kind, named)}?", yes=yes)
        changed = admin.pause(settings, kind, named, reason=reason)
    by = "" if held is None else f" already, since {held.since:%Y-%m-%d %H:%M:%S} UTC by {held.actor}"
    done = f"would pause {_words(kind, named)}" if dry_run and changed else f"{_words(kind, named)} is paused{by}"
    _report(kind, named, changed, dry_run, done, output)


def resume(
    what: Kind,
    name: Name = None,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    reason: options.Reason = None,
    output: Output = Form.TABLE,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
) -> None:
    """Let what `outbox pause` holds back go on, within about a second.

    \b
    outbox resume handler send_email --reason "mail server is back" --yes
    outbox resume relay
    """
    from outbox import admin

    kind, named = _meant(what, name)
    settings = options.settings(database_url=database_url, schema_name=schema)
    changed = any((hold.what, hold.name) == (kind, named) for hold in admin.holds(settings))
    if not dry_run and changed:
        confirm(f"Let {_words(kind, named)} go on?", yes=yes)
        changed = admin.resume(settings, kind, named, reason=reason)
    done = f"{_words(kind, named)} goes on" if changed else f"{_words(kind, named)} is not paused"
    _report(
        kind, named, changed, dry_run, f"would resume {_words(kind, named)}" if dry_run and changed else done, output
    )


Held: TypeAlias = Literal["handler", "event", "relay"]
HELD: dict[What, Held] = {What.HANDLER: "handler", What.EVENT: "event", What.STREAM: "event", What.RELAY: "relay"}


def _meant(what: What, name: str | None) -> tuple[Held, str]:
    """What is held back, as the database has it."""
    if (name is None) != (what is What.RELAY):
        raise typer.BadParameter("the relay has no name" if name else f"which {what}? Give its name")
    return HELD[what], name or ""


def _words(what: Held, name: str) -> str:
    return f"{what} {name}".strip() if name else "the relay"


def _report(what: Held, name: str, changed: bool, dry_run: bool, said: str, form: Form) -> None:
    if form is Form.TABLE:
        say(said)
    else:
        show_object({"what": what, "name": name, "changed": changed and not dry_run, "dry_run": dry_run}, form)
