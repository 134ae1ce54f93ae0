"""Histories: what each process says it is about to do and what came of it, outside of the system under test."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class History:
    """A process's own file, one JSON object a line, flushed to the disk before anything else happens.

    >>> history = History(Path("/tmp/writer-1.jsonl"))
    >>> history.say("intent", tx="writer-1-7")
    """

    def __init__(self, path: Path) -> None:
        self.who = path.stem
        self.pid = os.getpid()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def say(self, what: str, **facts: Any) -> None:
        """Append an entry with the time (seconds since 1970) and this process's id."""
        entry = {"t": round(time.time(), 4), "who": self.who, "pid": os.getpid(), "what": what, **facts}
        # One write, so that neither threads nor a kill leave more than the last line torn.
        os.write(self._file, json.dumps(entry).encode() + b"\n")
        os.fsync(self._file)


def read(folder: Path) -> list[Entry]:
    """All entries of all histories in a folder, by time. A last line that a kill cut off is no entry."""
    entries: list[Entry] = []
    for path in sorted(folder.glob("*.jsonl")):
        lines = path.read_text().split("\n")
        entries += [json.loads(line) for line in lines[:-1] if line]
    return sorted(entries, key=lambda entry: entry["t"])
