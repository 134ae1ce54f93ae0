"""`outbox upkeep`: one round of what a leading relay does about every minute."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from console import options
from console.listing import Form, Output, note, say, show_object

if TYPE_CHECKING:
    from relay.upkeep import Report

PARTLY = 3


def upkeep(
    may_block: Annotated[
        float,
        typer.Option(
            "--may-block",
            metavar="SECONDS",
            min=0.02,
            max=3600,
            help="Let one change keep writers waiting so long, to empty a large default partition.",
        ),
    ] = 0.1,
    dry_run: options.DryRun = False,
    output: Output = Form.TABLE,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
    log_level: options.LogLevel = None,
    log_format: options.LogFormat = None,
) -> None:
    """Make partitions ahead, drop what is done and older than OUTBOX_RETENTION, thin ticks.

    A leading relay does this by itself if its role owns the tables; if not,
    run it as the owner, once a day. A database that was restored on another
    server is rebased first.
    Exit 3 if something is left to be done; the next run tries again.

    \b
    outbox upkeep
    outbox upkeep --dry-run -o json
    """
    from outbox import telemetry
    from relay import lead
    from relay.rebase import rebase_if_restored
    from relay.upkeep import run

    settings = options.settings(
        database_url=database_url, schema_name=schema, log_level=log_level, log_format=log_format
    )
    telemetry.configure(settings.log_level, settings.log_format)
    name = settings.schema_name
    with lead.connect(settings.libpq_url(direct=True), name, role="upkeep") as connection:
        unfinished = rebase_if_restored(connection, name, dry_run=dry_run)
        report = run(connection, name, settings.retention, dry_run=dry_run, may_block=may_block)
    if output is Form.TABLE:
        _print(report, unfinished, dry_run)
    else:
        show_object({"dry_run": dry_run, "rebased": unfinished, **asdict(report)}, output)
    for line in _remarks(report):
        note(line)
    if report.left or not report.allowed:
        raise typer.Exit(PARTLY)


def _print(report: Report, unfinished: int | None, dry_run: bool) -> None:
    if unfinished is not None:
        say("the log must be rebased" if dry_run else f"rebased: {unfinished:,} unfinished events are fed again")
    would = "would " if dry_run else ""
    done = [
        f"{would}make {', '.join(report.made)}" if report.made else "",
        f"{would}drop {', '.join(report.dropped)}" if report.dropped else "",
        f"{would}move {report.moved:,} rows out of default partitions" if report.moved else "",
        f"{would}delete {report.deleted:,} rows of default partitions" if report.deleted else "",
        f"{would}delete {report.ticks:,} ticks" if report.ticks else "",
    ]
    for line in filter(None, done):
        say(line)
    if not report.changed:
        say("nothing to do")


def _remarks(report: Report) -> list[str]:
    from relay.upkeep import NOT_ALLOWED

    remarks = [f"left: {what}" for what in report.left]
    if not report.allowed:
        remarks.append(NOT_ALLOWED)
    if report.held_by:
        remarks.append(f"events older than the retention are kept for {', '.join(report.held_by)}")
    if report.unserved:
        remarks.append(f"no worker serves {', '.join(report.unserved)} any more: nothing is kept for them")
    if report.unhandled:
        names = ", ".join(f"{name} ({count:,})" for name, count in report.unhandled.items())
        remarks.append(f"expired, and no handler ever got them: {names}")
    return remarks
