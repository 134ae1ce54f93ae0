"""`outbox purge`: erase the content of somebody's events everywhere."""

from __future__ import annotations

from dataclasses import asdict

import typer

from console import options
from console.commands.selection import Ids, Key, Name, Since, Until, Where, selected
from console.confirming import confirm
from console.listing import Form, Output, note, say, show_object
from console.progress import bar, spinner


def purge(
    reason: options.Why,
    ids: Ids = None,
    name: Name = None,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    where: Where = None,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    output: Output = Form.TABLE,
    database_url: options.DatabaseUrl = None,
    redis_url: options.RedisUrl = None,
    schema: options.Schema = None,
    prefix: options.Prefix = None,
) -> None:
    """Erase the content of somebody's events everywhere: events, dead letters, copies, errors, stream entries.

    A tombstone without content stays for each event: it can be neither run
    nor replayed. What has not run is cancelled. Run it as the schema's
    owner, and again should it be interrupted. Backups are not reached.

    \b
    outbox purge --key customer-7 --reason "request 2026-113" --dry-run
    outbox purge --where payload.user_id=7 --reason "request 2026-113" --yes
    """
    which = selected(ids=ids, name=name, key=key, since=since, until=until, where=where)
    from outbox import admin
    from outbox.admin.purging import check

    try:
        check(which)
    except ValueError:
        raise typer.BadParameter("say whose content: --key, --where or ids; the other filters narrow it") from None
    if not reason.strip():
        raise typer.BadParameter("--reason needs a text")
    settings = options.settings(database_url=database_url, redis_url=redis_url, schema_name=schema, prefix=prefix)
    with spinner("counting what fits"):
        found = admin.purge(settings, which, reason=reason, dry_run=True)
    if not dry_run:
        confirm(f"Erase {_words(found)} for good?", yes=yes)
        with bar("purging") as progress:
            found = admin.purge(settings, which, reason=reason, progress=progress)
    if output is Form.TABLE:
        more = "" if dry_run else f", {found.entries:,} stream entries"
        say(f"{'would purge' if dry_run else 'purged'} {_words(found)}{more}")
    else:
        show_object({**asdict(found), "dry_run": dry_run}, output)
    if not (found.events or found.letters or found.scheduled or found.entries):
        note("nothing fits")


def _words(found: object) -> str:
    facts = asdict(found)  # type: ignore[call-overload]
    return f"{facts['events']:,} events, {facts['letters']:,} dead letters, {facts['scheduled']:,} scheduled events"
