"""`outbox discard`: take dead letters away for good."""

from __future__ import annotations

from typing import Annotated

import typer

from console import options
from console.commands.dead import COLUMNS, row
from console.commands.selection import Error, Group, Handler, Ids, Key, Name, Since, Until, Where, selected
from console.confirming import confirm
from console.listing import Form, Output, note, say, show, show_object
from console.progress import bar, spinner

SAMPLE = 10
"""Dead letters that a dry run shows."""

FAILED, PARTLY = 1, 3


def discard(
    reason: options.Why,
    ids: Ids = None,
    name: Name = None,
    handler: Handler = None,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    where: Where = None,
    error: Error = None,
    group: Group = None,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters of all handlers.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many, the oldest first.")] = None,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    output: Output = Form.TABLE,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
) -> None:
    """Take dead letters away for good: what failed and is not to run again.

    The events stay as long as they are retained, and their deliveries stay
    dead. The audit table keeps who, when, why and what was selected.
    Exit 1 if none fits, 3 if another command holds some.

    \b
    outbox discard --handler send_email --group 5f0c1e7a2b --reason "addresses of a test"
    outbox discard --until 30d --reason "too old" --dry-run
    """
    which = selected(
        ids=ids, name=name, handler=handler, key=key, since=since, until=until, where=where, error=error, group=group
    )
    if which.everything == (not everything):
        raise typer.BadParameter("say which: ids, --handler, --name, --until or another filter; or --all alone")
    if not reason.strip():
        raise typer.BadParameter("--reason needs a text")
    from outbox import admin

    settings = options.settings(database_url=database_url, schema_name=schema)
    with spinner("counting what fits"):
        count = admin.count_dead_letters(settings, which)
    wanted = count if limit is None else min(count, limit)
    words = f"{wanted:,} dead letter{'' if wanted == 1 else 's'}"
    if dry_run:
        letters = admin.dead_letters(settings, which, limit=min(SAMPLE, limit or SAMPLE), oldest_first=True)
        rows = [row(letter) for letter in letters]
        if output is Form.TABLE:
            say(f"would discard {words}")
            show(rows, COLUMNS, output, empty="no dead letter fits")
        else:
            show_object({"asked": wanted, "discarded": 0, "dry_run": True, "sample": rows}, output)
        return
    done = admin.Discarded(0, 0)
    if wanted:
        confirm(f"Discard {words} for good?", yes=yes)
        with bar("discarding") as progress:
            done = admin.discard(settings, which, limit=limit, counted=count, reason=reason, progress=progress)
    if output is Form.TABLE:
        say(f"discarded {done.count:,} of {done.asked:,} dead letters")
    else:
        show_object({"asked": done.asked, "discarded": done.count, "dry_run": False}, output)
    if done.count < done.asked or not done.asked:
        if not done.asked:
            note("no dead letter fits")
        raise typer.Exit(PARTLY if done.count else FAILED)
