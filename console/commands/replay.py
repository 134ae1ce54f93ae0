"""`outbox replay`: run dead letters again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from console import options
from console.commands.dead import COLUMNS, row
from console.commands.selection import Error, Group, Handler, Ids, Key, Name, Since, Until, Where, selected
from console.listing import Form, Output, console, note, say, show, show_object

if TYPE_CHECKING:
    from outbox.admin import Selection
    from outbox.settings import Settings

SAMPLE = 10
"""Dead letters that a dry run shows."""

FAILED, PARTLY = 1, 3


def replay(
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
    rate: Annotated[float | None, typer.Option(min=0.01, help="At most so many a second.")] = None,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    reason: options.Reason = None,
    output: Output = Form.TABLE,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
) -> None:
    """Put dead letters back: their handlers run them again, with all their attempts.

    Only those that fit everything given, each once, whatever else runs.
    TIME is when they died. The audit table keeps who, when, why and what.
    Exit 3 if some could not be put back.

    \b
    outbox replay 0197b6b0-5d3e-7c2a-9f00-3d2b6c1a7e55
    outbox replay --handler send_email --since 2h --dry-run
    outbox replay --all --rate 50 --reason "mail server is back" --yes
    """
    which = selected(
        ids=ids, name=name, handler=handler, key=key, since=since, until=until, where=where, error=error, group=group
    )
    if which.everything and not everything:
        raise typer.BadParameter("say which: ids, --handler, --name, --since or another filter, or --all")
    if everything and not which.everything:
        raise typer.BadParameter("--all takes every dead letter; leave it out to use the other filters")
    settings = options.settings(database_url=database_url, schema_name=schema)
    missing = _missing(settings, which)
    if dry_run:
        _sample(settings, which, limit, output)
        replayed = asked = 0
    else:
        if not yes and which.ids is None:
            _confirm(settings, which, limit)
        replayed, asked = _replay(settings, which, limit, rate, reason)
        if output is Form.TABLE:
            say(f"put back {replayed:,} of {asked:,} dead letters")
        else:
            show_object({"asked": asked, "replayed": replayed, "missing": missing, "dry_run": False}, output)
    if missing:
        note(f"no dead letter has the id {', '.join(map(str, missing))}")
        raise typer.Exit(PARTLY if replayed or len(missing) < len(which.ids or ()) else FAILED)
    if replayed < asked:
        raise typer.Exit(PARTLY if replayed else FAILED)


def _missing(settings: Settings, which: Selection) -> list[UUID]:
    """The ids that were given and that no fitting dead letter has."""
    from outbox import admin

    if which.ids is None:
        return []
    found = {letter.event_id for letter in admin.dead_letters(settings, which, limit=1_000_000)}
    return [id for id in which.ids if id not in found]


def _confirm(settings: Settings, which: Selection, limit: int | None) -> None:
    from outbox import admin

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    count = admin.count_dead_letters(settings, which)
    if count:
        count = count if limit is None else min(count, limit)
        typer.confirm(f"Run {count:,} dead letter{'' if count == 1 else 's'} again?", abort=True, err=True)


def _sample(settings: Settings, which: Selection, limit: int | None, form: Form) -> None:
    from outbox import admin

    matched = admin.count_dead_letters(settings, which)
    would = matched if limit is None else min(matched, limit)
    letters = [row(letter) for letter in admin.dead_letters(settings, which, limit=SAMPLE, oldest_first=True)]
    letters = letters[:would]
    if form is Form.TABLE:
        say(f"would put back {would:,} of {matched:,} dead letters that fit")
        show(letters, COLUMNS, form, empty="no dead letter fits")
    else:
        show_object({"asked": matched, "replayed": 0, "would_replay": would, "dry_run": True, "sample": letters}, form)


def _replay(
    settings: Settings, which: Selection, limit: int | None, rate: float | None, reason: str | None
) -> tuple[int, int]:
    from outbox import admin

    with _bar() as progress:
        done = admin.replay(settings, which, limit=limit, rate=rate, reason=reason, progress=progress)
    return done.count, done.asked


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr when that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(sys.stderr), transient=True) as shown:
        task = shown.add_task("putting back", total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
