"""An app's lifespan in this process: entered before the first event is read, left after the last run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.app import App

LEAVE_WITHIN = 5.0
"""Seconds that a lifespan gets to clean up."""


class Lifespan:
    """Holds the app's context manager open in a task of its own: what has to be left in the task that entered it, such
    as a task group, may be used in a lifespan."""

    def __init__(self, app: App, log: Any) -> None:
        self._app = app
        self._log = log
        self._over = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def enter(self) -> Any:
        """What the lifespan gives; None without one. Raises what it raises."""
        if self._app.lifespan is None:
            return None
        entered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._hold(self._app.lifespan(self._app), entered))
        try:
            await asyncio.wait({self.task, entered}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.task.cancel()
            raise
        if not entered.done():
            task, self.task = self.task, None
            task.result()
        return entered.result()

    async def _hold(self, lifespan: Any, entered: asyncio.Future[Any]) -> None:
        async with lifespan as value:
            entered.set_result(value)
            await self._over.wait()

    async def leave(self) -> None:
        """Let it clean up; cancelled when that takes too long. What it raises is its task's."""
        if self.task is None:
            return
        self._over.set()
        await asyncio.wait({self.task}, timeout=LEAVE_WITHIN)
        if not self.task.done():
            self._log.error("lifespan.stuck", seconds=LEAVE_WITHIN)
            self.task.cancel()
            await asyncio.wait({self.task}, timeout=1.0)
