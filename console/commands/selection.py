"""Arguments that select events and dead letters, read from what was typed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from console import moments
from console.listing import cell, note

if TYPE_CHECKING:
    from outbox.admin.selection import Selection

_WHICH = "Which"

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Events' outbox ids.", show_default=False)]
Name = Annotated[
    str | None,
    typer.Option("--name", "--event", metavar="NAME", help="Of events of this name.", rich_help_panel=_WHICH),
]
Handler = Annotated[str | None, typer.Option(metavar="NAME", help="Of this handler.", rich_help_panel=_WHICH)]
Key = Annotated[str | None, typer.Option(metavar="KEY", help="Of events with this key.", rich_help_panel=_WHICH)]
Since = Annotated[
    str | None, typer.Option(metavar="TIME", help="From then on: 2h (ago) or ISO 8601 in UTC.", rich_help_panel=_WHICH)
]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Before then.", rich_help_panel=_WHICH)]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIELD=VALUE", help="By payload: payload.user_id=7. Several must all fit.", rich_help_panel=_WHICH
    ),
]
Error = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Whose error has this text in it.", rich_help_panel=_WHICH)
]
Group = Annotated[
    str | None,
    typer.Option(metavar="GROUP", help="Of this group of errors: see `outbox dead --groups`.", rich_help_panel=_WHICH),
]
LookAt = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", help="Look through so many of the time given, the latest first.", rich_help_panel=_WHICH
    ),
]
LISTED = 100_000
"""As `outbox.admin.LISTED`, which is not loaded to show help."""


def tell_reach(reached: datetime | None, look_at: int) -> None:
    """Say that there is more than was looked at."""
    if reached is not None:
        note(f"looked at the latest {look_at:,}, back to {cell(reached)}: --until or --look-at reaches further")


def selected(
    *,
    ids: list[str] | None = None,
    name: str | None = None,
    handler: str | None = None,
    key: str | None = None,
    since: str | None = None,
    until: str | None = None,
    where: list[str] | None = None,
    error: str | None = None,
    group: str | None = None,
) -> Selection:
    """What was typed, as a selection. What cannot be read is a usage error, and so is a text of nothing."""
    from outbox.admin.selection import PayloadField, Selection

    first, last = read_span(since, until)
    for flag, text in (("--name", name), ("--handler", handler), ("--error", error), ("--group", group)):
        if text is not None and not text.strip():
            raise typer.BadParameter(f"{flag} needs a text; leave it out to select more")
    try:
        fields = tuple(PayloadField.parse(text) for text in where or [])
    except ValueError as wrong:
        raise typer.BadParameter(f"--where: {wrong}") from None
    return Selection(
        ids=read_ids(ids),
        name=name,
        handler=handler,
        key=key,
        since=first,
        until=last,
        payload=fields,
        error=error,
        group=group,
    )


def read_ids(given: list[str] | None) -> tuple[UUID, ...] | None:
    """The ids that were given, each once, or None. A text that is no id is a usage error."""
    ids: dict[UUID, None] = {}
    for text in given or []:
        try:
            ids[UUID(text)] = None
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not an outbox id") from None
    return tuple(ids) or None


def read_span(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    """The moments that were given. A span that ends before it begins is a usage error: nothing could fit."""
    first, last = read_moment(since, "--since"), read_moment(until, "--until")
    if first is not None and last is not None and first >= last:
        raise typer.BadParameter("--since lies after --until")
    return first, last


def read_moment(text: str | None, flag: str) -> datetime | None:
    """The moment that was given, or None. Anything else is a usage error."""
    if text is None:
        return None
    try:
        return moments.parse(text, datetime.now(UTC))
    except ValueError as error:
        raise typer.BadParameter(f"{flag}: {error}") from None
