"""Which Python files changed below some folders, without looking at what is no source: data, caches, installed code."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import watchfiles

from outbox.errors import ConfigurationError

IGNORED = {*watchfiles.DefaultFilter.ignore_dirs, "site-packages"}

MOST = 10_000
"""Folders that are watched at most: each takes something of the system's."""

QUIET = 500
"""Milliseconds without an event after which one looks whether something changed while nobody watched."""


def folders(roots: Sequence[Path]) -> list[Path]:
    """The folders to watch: `roots` and all below, but for hidden ones, virtual environments and caches.

    Raises `ConfigurationError` when there are none, or too many.
    """
    found: list[Path] = []
    for root in roots:
        for place, below, names in os.walk(root):
            if "pyvenv.cfg" in names and place != str(root):
                below.clear()
                continue
            below[:] = [name for name in below if not _ignored(name)]
            found.append(Path(place))
            if len(found) > MOST:
                raise ConfigurationError(
                    f"there are more than {MOST:,} folders below {root}: say with --reload-dir where the code is"
                )
    if not found:
        raise ConfigurationError(f"there is nothing to watch: no folder {', '.join(map(str, roots))}")
    return list(dict.fromkeys(found))


def _ignored(name: str) -> bool:
    return name.startswith(".") or name in IGNORED


def state(places: Sequence[Path]) -> dict[Path, tuple[int, int]]:
    """Time of change and size of every Python file in these folders."""
    found = {}
    for place in places:
        try:
            for entry in os.scandir(place):
                if entry.name.endswith(".py"):
                    facts = entry.stat()
                    found[Path(entry.path)] = (facts.st_mtime_ns, facts.st_size)
        except OSError:
            continue
    return found


def changes(roots: Sequence[Path], stopping: threading.Event) -> Iterator[set[Path]]:
    """Sets of Python files that were written, made or deleted since this was called, until `stopping` is set.

    Raises `OSError` when the system cannot watch (that many folders), and `ConfigurationError` as `folders` does.
    """
    known = state(folders(roots))
    while not stopping.is_set():
        places = folders(roots)
        watched = {str(place) for place in places}
        compared = False
        try:
            for seen in _events(places, stopping):
                moved = any(path in watched or _is_source_folder(path) for _, path in seen)
                if compared and not moved and not any(path.endswith(".py") for _, path in seen):
                    continue
                # Once without an event, too: something may have been written before the watching began.
                compared = True
                now = state(folders(roots) if moved else places)
                changed = {path for path in known.keys() | now.keys() if known.get(path) != now.get(path)}
                known = now
                if changed:
                    yield changed
                if moved:
                    break
        except FileNotFoundError:
            # A folder went between looking and watching.
            stopping.wait(0.1)


def _events(places: Sequence[Path], stopping: threading.Event) -> Iterator[set[tuple[watchfiles.Change, str]]]:
    return watchfiles.watch(
        *places,
        watch_filter=None,
        recursive=False,
        step=100,
        rust_timeout=QUIET,
        yield_on_timeout=True,
        stop_event=stopping,
        raise_interrupt=False,
    )


def _is_source_folder(path: str) -> bool:
    return not _ignored(os.path.basename(path)) and os.path.isdir(path)
