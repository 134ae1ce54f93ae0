"""`outbox demo`: the whole path on real servers, with kills in the middle."""

from __future__ import annotations

from typing import Annotated

import typer


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything up at the end, until Ctrl-C.")] = False,
    requests: Annotated[int, typer.Option("--requests", min=1, metavar="N", help="HTTP requests to send.")] = 1000,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Send the same requests again.")] = None,
) -> None:
    """See it work: servers, a shop, relays and workers, two kills, a replay, and the books at the end.

    Needs nothing but this package with its `demo` extra.
    Exit 1 if a single event is lost or doubled.

    \b
    outbox demo
    outbox demo --keep
    """
    from console import demo as stage

    raise typer.Exit(stage.run(keep=keep, requests=requests, seed=seed))
