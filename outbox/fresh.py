"""A value that is read anew when it is asked for and old: by one reader at a time, and never waited for for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

log = structlog.get_logger()

T = TypeVar("T")


class Fresh(Generic[T]):
    """Reads with `read()` in a thread of its own, at most every `keep` seconds however many ask. A `read` is waited
    for `within` seconds from its begin, even one that never returns.

    >>> Fresh(lambda: admin.status(settings), keep=5, within=3).get()
    """

    def __init__(self, read: Callable[[], T], *, keep: float, within: float) -> None:
        self._read = read
        self._keep = keep
        self._within = within
        self._lock = threading.Lock()
        self._last: _Reading[T] | None = None

    def get(self) -> T | None:
        """The value, read `keep` seconds ago at most; None when it did not come in time, or `read` raised."""
        reading = self._reading()
        # By the reading's own time: one that hangs is waited for once, not by everyone who asks.
        return reading.value if reading.over.wait(max(0.0, reading.began + self._within - time.monotonic())) else None

    def begin(self) -> None:
        """Begin to read if that is due, and wait for nothing: for who asks several servers at once."""
        self._reading()

    def _reading(self) -> _Reading[T]:
        with self._lock:
            reading = self._last
            if reading is None or (reading.over.is_set() and time.monotonic() - reading.at >= self._keep):
                reading = self._last = _Reading()
                # A daemon: a server that never answers must not keep the process from ending.
                threading.Thread(target=self._run, args=(reading,), name="outbox reading", daemon=True).start()
        return reading

    def _run(self, reading: _Reading[T]) -> None:
        try:
            reading.value = self._read()
        except Exception as error:
            log.warning("monitor.failed", error=type(error).__name__)
        reading.at = time.monotonic()
        reading.over.set()


class _Reading(Generic[T]):
    def __init__(self) -> None:
        self.began = time.monotonic()
        self.over = threading.Event()
        self.at = 0.0
        self.value: T | None = None
