"""One log of several processes: each line with the name of its process in front, in the order they come."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import IO, TextIO

from console.listing import console

COLOURS = {"dev": "bold", "postgres": "blue", "valkey": "magenta", "relay": "cyan", "worker": "green"}
"""The processes, and the colour of each one's name."""

WIDTH = max(map(len, COLOURS))

LONGEST = 65_536
"""Bytes after which a line without an end is printed all the same."""

ESCAPES = re.compile(r"\x1b\[[0-9;:]*m")


class Form(StrEnum):
    """How lines look: `COLOURED` for a terminal, `PLAIN` text, or one `JSON` object each."""

    COLOURED = "coloured"
    PLAIN = "plain"
    JSON = "json"


def form_for(stream: TextIO, log_format: str) -> Form:
    """The form that suits where the log goes: colours for terminals only, and never against NO_COLOR."""
    if log_format == "json":
        return Form.JSON
    shown = console(stream)
    return Form.COLOURED if shown.is_terminal and not shown.no_color else Form.PLAIN


def rendered(name: str, text: str, form: Form, *, level: str, at: datetime) -> str:
    """One line of the log. `text` is what the process wrote; `level` and `at` count unless it is JSON that says them.

    >>> rendered("worker", "hello", Form.PLAIN, level="info", at=datetime.now(UTC))
    'worker   | hello'
    """
    if form is Form.JSON:
        said = None
        if text.startswith("{"):
            try:
                said = json.loads(text)
            except ValueError:
                said = None
        if not isinstance(said, dict):
            said = {"event": ESCAPES.sub("", text), "level": level, "timestamp": at.isoformat().replace("+00:00", "Z")}
        return json.dumps({"process": name, **said}, ensure_ascii=False)
    if form is Form.PLAIN:
        return f"{name:<{WIDTH}} | {ESCAPES.sub('', text)}"
    from rich.style import Style

    painted = Style.parse(COLOURS.get(name, "default")).render(f"{name:<{WIDTH}} |")
    # What the line itself began must not colour the next one.
    return f"{painted} {text}" + ("\x1b[0m" if "\x1b[" in text else "")


class Log:
    """Writes lines to `stream`, one at a time however many threads have one. When nobody reads it any more, it says so
    once, by `lost`, and is silent from then on."""

    def __init__(self, stream: TextIO, form: Form, lost: Callable[[], None] = lambda: None) -> None:
        self.form = form
        self.lost = lost
        self._stream = stream
        self._lock = threading.Lock()
        self._broken = False

    def line(self, name: str, text: str, level: str = "info") -> None:
        """Write one line of the process `name`."""
        shown = rendered(name, text, self.form, level=level, at=datetime.now(UTC))
        with self._lock:
            if self._broken:
                return
            try:
                self._stream.write(f"{shown}\n")
                self._stream.flush()
            except OSError:
                self._broken = True
                self.lost()

    def say(self, text: str, level: str = "info") -> None:
        """Write a line of our own, or one for each line of a longer text."""
        for line in text.splitlines():
            self.line("dev", line, level)

    def take(self, name: str, pipe: IO[bytes]) -> threading.Thread:
        """Write what comes out of `pipe` as lines of `name`, in a thread of its own, until the pipe ends."""

        def copy() -> None:
            with pipe:
                while raw := pipe.readline(LONGEST):
                    self.line(name, raw.decode(errors="backslashreplace").rstrip("\r\n"))

        thread = threading.Thread(target=copy, name=f"log of {name}", daemon=True)
        thread.start()
        return thread

    def follow(self, name: str, file: IO[bytes], shown: Callable[[str], tuple[str, str] | None]) -> Callable[[], None]:
        """Write what is added to a server's log `file`, as far as `shown` makes (level, text) of it.

        What is returned ends that.
        """
        stopping = threading.Event()

        def copy() -> None:
            with file:
                begun = b""
                while not stopping.is_set():
                    begun += file.read(LONGEST)
                    *lines, begun = begun.split(b"\n")
                    for raw in lines:
                        if line := shown(raw.decode(errors="backslashreplace").rstrip("\r")):
                            self.line(name, line[1], line[0])
                    if not lines:
                        stopping.wait(0.1)

        threading.Thread(target=copy, name=f"log of {name}", daemon=True).start()
        return stopping.set
