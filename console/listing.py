"""What a command found, on stdout: a table for people, JSON or JSON lines for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TextIO
from uuid import UUID

import typer

from outbox.position import END, ORIGIN, Position

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Row = Mapping[str, Any]


class Form(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


Output = Annotated[Form, typer.Option("--output", "-o", help="How results are printed on stdout.")]


def console(stream: TextIO) -> Console:
    """A Rich console that colours terminals only, obeys NO_COLOR and never wraps what goes into a pipe."""
    from rich.console import Console

    return Console(file=stream, width=None if stream.isatty() else 10_000, highlight=False, markup=False, emoji=False)


def say(text: str = "") -> None:
    """A line on stdout."""
    sys.stdout.write(f"{text}\n")


def note(message: str) -> None:
    """A line for people, on stderr: progress and remarks are no data."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def show(rows: Sequence[Row], columns: Mapping[str, str], form: Form, *, empty: str) -> None:
    """Print rows. A table shows `columns` (field → heading), or remarks `empty`; JSON has all fields of every row."""
    if form is Form.JSON:
        say(json.dumps(rows, default=plain, indent=2, ensure_ascii=False))
    elif form is Form.JSONL:
        for row in rows:
            say(json.dumps(row, default=plain, ensure_ascii=False))
    elif rows:
        table(columns.values(), [[row[field] for field in columns] for row in rows])
    else:
        note(empty)


def show_object(value: Row, form: Form) -> None:
    """Print one object as JSON, on one line for JSON lines."""
    say(json.dumps(value, default=plain, indent=2 if form is Form.JSON else None, ensure_ascii=False))


def table(headings: Iterable[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table. Numbers stand right, and no cell can bring control characters to the terminal."""
    console(sys.stdout).print(drawn(headings, rows))


def drawn(headings: Iterable[str], rows: Iterable[Sequence[Any]]) -> Table:
    """The same as a Rich table, not printed."""
    from rich.table import Table
    from rich.text import Text

    cells = [list(row) for row in rows]
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, heading in enumerate(headings):
        numbers = any(isinstance(row[index], int) for row in cells)
        made.add_column(heading, justify="right" if numbers else "left", overflow="fold" if index == 0 else "ellipsis")
    for row in cells:
        made.add_row(*(Text(cell(value)) for value in row))
    return made


def cell(value: Any) -> str:
    """A value as people read it, on one line and without control characters."""
    if value is None:
        return "–"
    if isinstance(value, Position):
        return place(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, timedelta):
        return span(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "".join(character if character.isprintable() else " " for character in str(value))


def place(position: Position) -> str:
    """A place in the log: as Redis writes it, but for the two places that no entry has."""
    if position == ORIGIN:
        return "start"
    return f"{position.tick}-end" if position.seq == END else str(position)


def span(length: timedelta) -> str:
    """A length of time, rounded down to what matters: `350 ms`, `12 s`, `5 min`, `3 h`, `2 d`."""
    seconds = max(0.0, length.total_seconds())
    if seconds < 1:
        return f"{int(seconds * 1000)} ms"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def plain(value: Any) -> Any:
    """What `json` does not know, as JSON: times as ISO 8601, lengths of time in seconds, the rest as text."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"no JSON for {type(value).__name__}")
