from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from workers.watchdog import Watchdog


class Log:
    """Collects what is logged, and says when something was."""

    def __init__(self) -> None:
        self.found: list[tuple[str, dict[str, Any]]] = []
        self.blocked = threading.Event()

    def warning(self, event: str, **facts: Any) -> None:
        self.found.append((event, facts))
        if event == "loop.blocked":
            self.blocked.set()


def test_a_loop_that_turns_is_not_reported_and_one_that_stands_is_whoever_holds_it() -> None:
    log = Log()

    async def main() -> None:
        watchdog = Watchdog(log, limit=2.0)
        # A worker may wait for its servers for long before it starts.
        watchdog._turned -= 1000
        watchdog.start()
        until = time.monotonic() + 1
        while time.monotonic() < until:
            await asyncio.sleep(0.01)
        assert log.found == []
        assert log.blocked.wait(20)
        while len(log.found) < 2:
            await asyncio.sleep(0.01)
        watchdog.stop()
        watchdog.stop()

    asyncio.run(main())
    (blocked, facts), (free, total) = log.found
    assert (blocked, free) == ("loop.blocked", "loop.free")
    assert facts["handler"] is None
    assert "assert log.blocked.wait(20)" in facts["stack"]
    assert total["seconds"] > 2


def test_a_thread_that_was_stopped_ends() -> None:
    async def main() -> None:
        watchdog = Watchdog(Log(), limit=0.1)
        watchdog.start()
        watchdog.stop()

    asyncio.run(main())
    for thread in threading.enumerate():
        if thread.name == "outbox watchdog":
            thread.join(10)
            assert not thread.is_alive()
