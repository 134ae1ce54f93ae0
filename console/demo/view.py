"""What one sees: on a terminal a table that is repainted, else plain lines about once a second."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table


class View(Protocol):
    """Shows how things go. `say` tells what happens, `show` the figures of a moment."""

    interval: float
    """Seconds between two calls of `show`."""

    def say(self, text: str) -> None: ...

    def show(self, figures: Mapping[str, int]) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class PlainView:
    """Lines of text, each with the seconds since the start."""

    interval = 1.0

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """Print one line."""
        elapsed = time.monotonic() - self._started
        self._console.print(f"{elapsed:5.1f} s  {text}", soft_wrap=True, markup=False, highlight=False)

    def show(self, figures: Mapping[str, int]) -> None:
        """Print the figures as one line."""
        self.say("  ".join(f"{name} {value}" for name, value in figures.items()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to put back."""


class TerminalView(PlainView):
    """The figures in a table below the lines."""

    interval = 0.2

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, refresh_per_second=10)

    def show(self, figures: Mapping[str, int]) -> None:
        """Repaint the table."""
        table = Table()
        styles = {"done": "green", "retrying": "yellow", "dead": "red", "lag": "cyan"}
        for name in figures:
            table.add_column(name, justify="right", min_width=9, style=styles.get(name))
        table.add_row(*(f"{value:,}" for value in figures.values()))
        self._live.update(table)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


def for_console(console: Console) -> View:
    """The view that suits where the output goes."""
    return TerminalView(console) if console.is_terminal else PlainView(console)
