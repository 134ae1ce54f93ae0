"""The program `outbox`: which commands it has."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from console.commands.cancel import cancel
from console.commands.dead import dead
from console.commands.demo import demo
from console.commands.dev import dev
from console.commands.discard import discard
from console.commands.doctor import doctor
from console.commands.events import events
from console.commands.handlers import forget, rename
from console.commands.hold import pause, resume
from console.commands.migrate import migrate
from console.commands.purge import purge
from console.commands.relay import relay
from console.commands.replay import replay
from console.commands.status import status
from console.commands.top import top
from console.commands.upkeep import upkeep
from console.commands.worker import worker

app = typer.Typer(
    name="outbox",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_RUN, _LOOK, _SET_UP = "Run", "Look after", "Set up"

app.command("migrate", rich_help_panel=_SET_UP)(migrate)
app.command("demo", rich_help_panel=_SET_UP)(demo)
app.command("relay", rich_help_panel=_RUN)(relay)
app.command("worker", rich_help_panel=_RUN)(worker)
app.command("dev", rich_help_panel=_RUN)(dev)
app.command("status", rich_help_panel=_LOOK)(status)
app.command("doctor", rich_help_panel=_LOOK)(doctor)
app.command("top", rich_help_panel=_LOOK)(top)
app.command("events", rich_help_panel=_LOOK)(events)
app.command("dead", rich_help_panel=_LOOK)(dead)
app.command("replay", rich_help_panel=_LOOK)(replay)
app.command("pause", rich_help_panel=_LOOK)(pause)
app.command("resume", rich_help_panel=_LOOK)(resume)
app.command("cancel", rich_help_panel=_LOOK)(cancel)
app.command("discard", rich_help_panel=_LOOK)(discard)
app.command("forget", rich_help_panel=_LOOK)(forget)
app.command("rename", rich_help_panel=_LOOK)(rename)
app.command("purge", rich_help_panel=_LOOK)(purge)
app.command("upkeep", rich_help_panel=_LOOK)(upkeep)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"outbox {version('transactional-outbox')}")
        raise typer.Exit


@app.callback()
def outbox(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A transactional outbox: events that commit with your data, a relay to Redis, and workers.

    Settings come from flags, OUTBOX_… variables or `.env`.
    Data goes to stdout, logs and progress to stderr.
    Exit status: 0 done, 1 failed, 2 wrong usage, 3 partly done.
    """
