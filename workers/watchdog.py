"""A thread that notices when the event loop stands still, and names the handler that holds it.

While a handler blocks the loop nothing else of its process goes on: no other handler, and no lease is renewed.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from types import FrameType
from typing import Any

from workers.job import Job
from workers.standstill import Standstill

LIMIT = 1.0
"""Seconds that the loop may stand still."""

ROUNDS = 4
"""How often within the limit the loop shows that it turns, and the thread looks."""

DEEPEST = 30
"""Frames of the stack that are shown, the innermost ones."""


class Watchdog:
    """Watches the running loop from `start` to `stop`; `limit` is in seconds, and so is `standstill`, after which the
    process is ended (0: never).

    Each block is logged twice: as `loop.blocked` while it lasts, with the handler, the event and the stack, and as
    `loop.free` with the seconds it took when it is over. Code that does not let the thread run either, such as a loop
    in C that holds the interpreter, is reported when it is over only.
    """

    def __init__(self, log: Any, limit: float = LIMIT, *, standstill: float = 0.0) -> None:
        self._log = log
        self._limit = limit
        self._standstill = standstill
        self._interval = limit / ROUNDS
        self._turned = time.monotonic()
        self._reported: tuple[float, dict[str, Any]] = (0.0, {})
        """When the loop had last turned at the last report, and whom that named."""
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        """Watch the running loop, which must be this thread's."""
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._turned = time.monotonic()
        self._turn()
        threading.Thread(target=self._watch, name="outbox watchdog", daemon=True).start()

    def stop(self) -> None:
        """Watch no more. Stopping twice is fine."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()

    def _turn(self) -> None:
        now = time.monotonic()
        stood = now - self._turned
        if stood > self._limit:
            since, facts = self._reported
            if since != self._turned:
                facts = {"handler": None}
            self._log.warning("loop.free", seconds=round(stood, 3), **facts)
        self._turned = now
        self._timer = self._loop.call_later(self._interval, self._turn)

    def _watch(self) -> None:
        looked, seen = time.monotonic(), self._turned
        standstill = Standstill(self._standstill, round=2 * self._interval)
        while not self._stopped.wait(self._interval):
            now, before = time.monotonic(), looked
            looked = now
            standstill.turns(self._turned != seen, now - before)
            seen = self._turned
            # Who came late itself was stopped together with the loop, or could not run: the loop says it afterwards.
            late = now - before > 2 * self._interval
            turned = self._turned
            if not late and now - turned > self._limit and self._reported[0] != turned:
                self._report(turned, now - turned)
        standstill.over()

    def _report(self, turned: float, seconds: float) -> None:
        frame = sys._current_frames().get(self._watched)
        facts = running(frame)
        stack = "".join(traceback.format_list(traceback.extract_stack(frame)[-DEEPEST:])) if frame else ""
        if self._turned == turned:
            self._reported = turned, facts
            self._log.warning("loop.blocked", seconds=round(seconds, 3), **facts, stack=stack)


def running(frame: FrameType | None) -> dict[str, Any]:
    """The handler and the event whose run has `frame` on its stack; None as handler when it is nobody's."""
    while frame is not None:
        for value in list(frame.f_locals.values()):
            if isinstance(value, Job):
                return {"handler": value.lane.name, "event_id": value.event_id}
        frame = frame.f_back
    return {"handler": None}
