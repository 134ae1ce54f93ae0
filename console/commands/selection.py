"""Arguments that select events and dead letters, read from what was typed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import typer

from console import moments

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Events' outbox ids.", show_default=False)]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="From then on: 2h (ago) or ISO 8601 in UTC.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Before then.")]


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
