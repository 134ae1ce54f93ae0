"""`outbox forget` and `outbox rename`: handlers that are no more, or have another name."""

from __future__ import annotations

from typing import Annotated

import typer

from console import options
from console.confirming import confirm
from console.listing import Form, Output, say, show_object

Handler = Annotated[str, typer.Argument(metavar="HANDLER", help="Its name.", show_default=False)]
New = Annotated[str, typer.Argument(metavar="NEW", help="Its name from then on.", show_default=False)]


def forget(
    handler: Handler,
    letters: Annotated[bool, typer.Option("--letters", help="Its dead letters, too.")] = False,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    reason: options.Reason = None,
    output: Output = Form.TABLE,
    database_url: options.DatabaseUrl = None,
    redis_url: options.RedisUrl = None,
    schema: options.Schema = None,
    prefix: options.Prefix = None,
) -> None:
    """Forget a handler that no code has any more: its place, its group and stream in Redis, its retries.

    Nothing is kept for it from then on. Its dead letters stay unless
    --letters is given. Refused while a worker serves it. Run it as the
    schema's owner.

    \b
    outbox forget write_invoice --dry-run
    outbox forget write_invoice --reason "replaced by bill" --yes
    """
    from outbox import admin

    settings = options.settings(database_url=database_url, redis_url=redis_url, schema_name=schema, prefix=prefix)
    found = admin.forget(settings, handler, letters=letters, dry_run=True)
    kept = f"{found.letters:,} dead letters {'go, too' if letters else 'stay'}"
    if not dry_run:
        confirm(f"Forget {handler} of {found.event_name}? {found.retrying:,} retries are cancelled, {kept}.", yes=yes)
        found = admin.forget(settings, handler, letters=letters, reason=reason)
    if output is Form.TABLE:
        said = "would forget" if dry_run else "forgot"
        say(f"{said} {handler} of {found.event_name}; {found.retrying:,} retries are cancelled, {kept}")
    else:
        facts = {"handler": handler, "event": found.event_name, "retrying": found.retrying, "letters": found.letters}
        show_object({**facts, "letters_kept": not letters, "dry_run": dry_run}, output)


def rename(
    handler: Handler,
    new: New,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    reason: options.Reason = None,
    output: Output = Form.TABLE,
    database_url: options.DatabaseUrl = None,
    redis_url: options.RedisUrl = None,
    schema: options.Schema = None,
    prefix: options.Prefix = None,
) -> None:
    """Give a handler another name; it goes on where it was, with its retries and dead letters.

    After the last worker with the old name, before the first with the new
    one. Refused while a worker serves it. Run it as the schema's owner.

    \b
    outbox rename bill send_invoice --reason "clearer" --yes
    """
    from outbox import admin
    from outbox.errors import PayloadError

    settings = options.settings(database_url=database_url, redis_url=redis_url, schema_name=schema, prefix=prefix)
    try:
        found = admin.rename(settings, handler, new, dry_run=True)
    except PayloadError as error:
        raise typer.BadParameter(str(error)) from None
    if not dry_run:
        confirm(f"Rename {handler} of {found.event_name} to {new}?", yes=yes)
        found = admin.rename(settings, handler, new, reason=reason)
    if output is Form.TABLE:
        say(f"{'would rename' if dry_run else 'renamed'} {handler} of {found.event_name} to {new}")
    else:
        facts = {"handler": handler, "new": new, "event": found.event_name, "retrying": found.retrying}
        show_object({**facts, "letters": found.letters, "dry_run": dry_run}, output)
