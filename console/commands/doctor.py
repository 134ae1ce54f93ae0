"""`outbox doctor`: what is wrong with an installation, what shows it, and what to do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from console import options
from console.listing import Form, Output, cell, console, note, say, show

if TYPE_CHECKING:
    from console.doctor import Finding

_STYLES = {"ok": "green", "info": "cyan", "warning": "yellow", "error": "bold red"}


def doctor(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Show what is fine too.")] = False,
    output: Output = Form.TABLE,
    database_url: options.DatabaseUrl = None,
    redis_url: options.RedisUrl = None,
    schema: options.Schema = None,
    prefix: options.Prefix = None,
) -> None:
    """Look for everything that is known to go wrong. Changes nothing.

    Each finding says how bad it is, what shows it and what to do. Exit 1 if
    there is an error; warnings and remarks exit 0.
    Checks are made one by one, each bounded in time: one that cannot be made
    says why. JSON has those that are fine, too.

    \b
    outbox doctor
    outbox doctor --all
    outbox doctor -o json | jq '.[] | select(.severity != "ok")'
    """
    from console.doctor import Severity, examine

    settings = options.settings(database_url=database_url, redis_url=redis_url, schema_name=schema, prefix=prefix)
    found = examine(settings)
    if output is Form.TABLE:
        _print(found, everything)
    else:
        show([asdict(finding) for finding in found], {}, output, empty="")
    for finding in found:
        if finding.check in ("postgresql", "redis") and finding.severity is Severity.ERROR:
            note(f"outbox: {finding.evidence}")
    if any(finding.severity is Severity.ERROR for finding in found):
        raise typer.Exit(1)


def _print(found: Sequence[Finding], everything: bool) -> None:
    """The worst first, a finding on as many lines as it takes: what it says must not be cut off."""
    from rich.table import Table
    from rich.text import Text

    # What was not looked at because a server is away, that server's finding says.
    shown = [
        finding for finding in found if everything or (finding.severity != "ok" and (finding.made or finding.remedy))
    ]
    made = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for _ in range(2):
        made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for finding in sorted(shown, key=lambda each: -each.severity.rank):
        lines = [cell(finding.evidence), *([f"→ {cell(finding.remedy)}"] if finding.remedy else [])]
        style = _STYLES[finding.severity]
        made.add_row(Text(finding.severity, style), Text(finding.check, "bold"), Text("\n".join(lines)))
    if shown:
        console(sys.stdout).print(made)
    fine = sum(finding.severity == "ok" for finding in found)
    left = sum(not finding.made for finding in found)
    say(f"{fine} of {len(found)} checks are fine" + (f", {left} could not be made" if left else ""))
