"""How far something is, on stderr where that is a terminal: a bar with the time that is left, or that it goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from console.listing import console


@contextmanager
def bar(doing: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that is told how much is done, and of how much.

    >>> with bar("putting back") as progress:
    ...     progress(500, 12_000)
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(sys.stderr), transient=True) as shown:
        task = shown.add_task(doing, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


@contextmanager
def spinner(doing: str) -> Iterator[None]:
    """Shows that something goes on whose end is not known.

    >>> with spinner("counting what fits"):
    ...     count = admin.count_dead_letters(settings, which)
    """
    if not sys.stderr.isatty():
        yield
        return
    with console(sys.stderr).status(doing):
        yield
