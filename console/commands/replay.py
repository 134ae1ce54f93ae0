"""`outbox replay`: run deliveries again."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from console import options
from console.commands.selection import Error, Group, Handler, Ids, Key, Name, Since, Until, Where, selected
from console.confirming import confirm
from console.listing import Form, Output, note, say, show, show_object
from console.progress import bar, spinner

if TYPE_CHECKING:
    from outbox.admin import Candidate, Candidates, Edit, Replayed, Selection

SAMPLE = 10
"""Deliveries that a dry run shows."""

FAILED, PARTLY = 1, 3
COLUMNS = {"event_id": "EVENT ID", "handler": "HANDLER", "event": "EVENT", "key": "KEY", "payload": "PAYLOAD"}


class Outcome(StrEnum):
    """What became of the deliveries that are meant."""

    DEAD = "dead"
    DONE = "done"
    CANCELLED = "cancelled"
    MISSED = "missed"
    ANY = "any"


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
    outcome: Annotated[
        Outcome,
        typer.Option(help="What became of them; missed: the handler began later.", rich_help_panel="Which"),
    ] = Outcome.DEAD,
    all_handlers: Annotated[
        bool,
        typer.Option("--all-handlers", help="What is not dead: at all handlers.", rich_help_panel="Which"),
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters of all handlers.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many, the oldest first.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.01, max=1_000_000, help="At most so many a second.")] = None,
    edit: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE|JSON", help="Run a copy with payload.field=value, or a JSON merge patch."),
    ] = None,
    anew: Annotated[bool, typer.Option("--anew", help="From the beginning, should it have been interrupted.")] = False,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    reason: options.Reason = None,
    output: Output = Form.TABLE,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
) -> None:
    """Put dead letters back: their handlers run them again, with all their attempts.

    Only those that fit everything given, each once, whatever else runs.
    --outcome takes what succeeded, was cancelled, or was there before the
    handler, of one handler, or with --all-handlers of all. TIME is when they
    died, else when the event was added. Interrupted, the same command goes
    on. The audit table keeps who, when, why and what.
    Exit 3 if some could not be put back, or are of handlers nobody has.

    \b
    outbox replay 0197b6b0-5d3e-7c2a-9f00-3d2b6c1a7e55
    outbox replay --handler send_email --since 2h --dry-run
    outbox replay --all --rate 50 --reason "mail server is back" --yes
    outbox replay --handler send_email --outcome done --where payload.user_id=7
    outbox replay --handler new_index --outcome missed --rate 500
    outbox replay --handler send_email --error welcom --edit payload.template=welcome
    """
    which = selected(
        ids=ids, name=name, handler=handler, key=key, since=since, until=until, where=where, error=error, group=group
    )
    _check(which, outcome, everything, all_handlers)
    edits = _edit(edit)
    from outbox import admin

    settings = options.settings(database_url=database_url, schema_name=schema)
    state = admin.Outcome(outcome.value)
    with spinner("counting what fits"):
        found = admin.candidates(
            settings, which, outcome=state, edit=edits, limit=SAMPLE if which.ids is None else 1_000_000
        )
    count = found.count
    missing = [id for id in which.ids or () if str(id) not in {each.event_id for each in found.sample}]
    what = "dead letter" if outcome is Outcome.DEAD else "delivery"
    wanted = count if limit is None else min(count, limit)
    typed = [ids, name, handler, key, since, until, where, error, group, outcome, all_handlers, limit, edit]
    begun = None if anew else admin.interrupted(settings, which, known_as=json.dumps(typed))
    if begun is not None:
        note(
            f"goes on with what {begun.actor} began at {begun.began_at:%Y-%m-%d %H:%M:%S} UTC:"
            f" {begun.count:,} of {_words(begun.asked, what)} are put back"
        )
    if dry_run:
        _sample(found, wanted, what, output)
        done = admin.Replayed(0, 0, 0)
    else:
        if count:
            more = wanted if begun is None else begun.asked - begun.count
            confirm(f"Run {_words(more, what)} again{' with an edited payload' if edits else ''}?", yes=yes)
        seen = [0, 0]
        try:
            with bar("putting back") as shown:

                def progress(done: int, total: int) -> None:
                    seen[:] = done, total
                    shown(done, total)

                done = admin.replay(
                    settings, which, outcome=state, edit=edits, limit=limit, rate=rate, reason=reason,
                    known_as=json.dumps(typed), anew=anew, counted=found, progress=progress,
                )  # fmt: skip
        except KeyboardInterrupt:
            note(f"interrupted: {seen[0]:,} of {seen[1]:,} are put back; the same command goes on from there")
            raise typer.Exit(PARTLY if seen[0] else FAILED) from None
        _report(done, missing, found, what, output)
    for id, at in admin.purged(settings, missing).items():
        note(f"event {id} was purged at {at:%Y-%m-%d %H:%M:%S} UTC: it has no content any more")
    _leave(done, missing, found, which, dry_run, what)


def _check(which: Selection, outcome: Outcome, everything: bool, all_handlers: bool) -> None:
    if outcome is not Outcome.DEAD:
        if everything:
            raise typer.BadParameter("--all is about dead letters; use --all-handlers")
        if (which.handler is None) != all_handlers:
            raise typer.BadParameter(f"--outcome {outcome} needs either --handler NAME or --all-handlers")
    elif all_handlers:
        raise typer.BadParameter("--all-handlers goes with --outcome; dead letters have --all")
    elif which.everything and not everything:
        raise typer.BadParameter("say which: ids, --handler, --name, --since or another filter, or --all")
    elif everything and not which.everything:
        raise typer.BadParameter("--all takes every dead letter; leave it out to use the other filters")


def _edit(given: list[str] | None) -> Edit | None:
    from outbox.admin import Edit

    try:
        return Edit.parse(given) if given else None
    except ValueError as wrong:
        raise typer.BadParameter(f"--edit: {wrong}") from None


def _words(count: int, what: str) -> str:
    many = what.replace("delivery", "deliverie") + "s"
    return f"{count:,} {what if count == 1 else many}"


def _sample(found: Candidates, wanted: int, what: str, form: Form) -> None:
    rows = [_row(each) for each in found.sample[:SAMPLE][:wanted]]
    if form is Form.TABLE:
        say(f"would put back {wanted:,} of {_words(found.count, what)} that fit")
        show([{**row, "payload": json.dumps(row["payload"])} for row in rows], COLUMNS, form, empty=f"no {what} fits")
    else:
        facts = {"asked": found.count, "replayed": 0, "would_replay": wanted, "orphans": found.orphans}
        show_object({**facts, "dry_run": True, "sample": rows}, form)


def _row(each: Candidate) -> dict[str, Any]:
    row = asdict(each)
    return {**row, "event": row.pop("event_name"), "payload": json.loads(row.pop("payload_json"))}


def _report(done: Replayed, missing: list[UUID], found: Candidates, what: str, form: Form) -> None:
    if form is Form.TABLE:
        before = f", {done.total - done.count:,} of them before" if done.total > done.count else ""
        say(f"put back {done.total:,} of {_words(done.asked, what)}{before}")
    else:
        facts = {"asked": done.asked, "replayed": done.count, "total": done.total}
        show_object({**facts, "missing": missing, "orphans": found.orphans, "dry_run": False}, form)


def _leave(done: Replayed, missing: list[UUID], found: Candidates, which: Selection, dry_run: bool, what: str) -> None:
    for handler, letters in found.orphans.items():
        note(
            f"{_words(letters, what)} of {handler} {'is' if letters == 1 else 'are'} left: no worker has announced"
            f" that handler. Start one first, or `outbox discard --handler {handler}`"
        )
    if missing:
        note(f"no {what} that fits has the id {', '.join(map(str, missing))}")
        raise typer.Exit(PARTLY if len(missing) < len(which.ids or ()) else FAILED)
    if not dry_run and (found.orphans or not done.complete):
        raise typer.Exit(PARTLY if done.total else FAILED)
