"""`outbox top`: the status, again and again."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from console import options
from console.listing import cell, console, drawn

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.text import Text

    from console.overview import Overview
    from outbox.settings import Settings


def top(
    interval: Annotated[
        float, typer.Option(min=0.2, max=3600, metavar="SECONDS", help="Look again after so long.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show it once and end, as when stdout is no terminal.")] = False,
    database_url: options.DatabaseUrl = None,
    redis_url: options.RedisUrl = None,
    schema: options.Schema = None,
    prefix: options.Prefix = None,
) -> None:
    """Show how far relay and handlers are, live, until Ctrl-C.

    What `outbox status` shows, with the handler whose events wait longest on
    top.

    \b
    outbox top
    outbox top --interval 5
    """
    from console import overview

    settings = options.settings(database_url=database_url, redis_url=redis_url, schema_name=schema, prefix=prefix)
    first = frame(overview.look(settings))
    if once or not sys.stdout.isatty():
        console(sys.stdout).print(first)
        return
    from rich.live import Live

    with suppress(KeyboardInterrupt), Live(first, console=console(sys.stdout), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            live.update(_next(settings), refresh=True)


def _next(settings: Settings) -> Group | Text:
    """A further look. A server that is away is shown too: it may come back."""
    from rich.text import Text

    from console import overview
    from console.faults import explained

    try:
        return frame(overview.look(settings))
    except Exception as error:
        line = explained(error)
        if line is None:
            raise
        return Text(cell(line), style="red")


def frame(seen: Overview) -> Group:
    """One look as something that Rich shows."""
    from rich.console import Group
    from rich.text import Text

    from console import overview

    parts: list[RenderableType] = [Text(f"outbox at {cell(seen.status.at)}", style="bold")]
    parts += [Text(line, style=_style(line)) for line in overview.lines(seen)]
    headings, rows = overview.handlers(seen)
    waits = headings.index("OLDEST")
    rows.sort(key=lambda row: -row[waits].total_seconds() if row[waits] else 0.0)
    for names, found in ((headings, rows), overview.streams(seen), overview.workers(seen)):
        if found:
            parts += [Text(), drawn(names, found)]
    return Group(*parts)


def _style(line: str) -> str:
    """What should be seen first is red."""
    return "red" if any(sign in line for sign in ("none leads", "none is alive", "LISTEN is dead", "away: ")) else ""
