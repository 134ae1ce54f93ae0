from __future__ import annotations

import asyncio
import threading

import pytest

from workers.errors import HandlerTimeoutError
from workers.threads import Threads


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What threads died of."""
    found: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: found.append(str(args.exc_value)))
    return found


def test_a_thread_that_ends_after_the_loop_was_closed_dies_of_nothing(failures: list[str]) -> None:
    inside, go = threading.Event(), threading.Event()
    found: list[threading.Thread] = []

    def hang() -> None:
        found.append(threading.current_thread())
        inside.set()
        go.wait()

    async def main() -> None:
        threads = Threads("t")
        ticket = threads.submit(hang)
        await asyncio.to_thread(inside.wait)
        threads.close()
        with pytest.raises(HandlerTimeoutError):
            await ticket.result

    asyncio.run(main())
    go.set()
    found[0].join(10)
    assert not found[0].is_alive()
    assert failures == []


def test_an_interruption_ends_python_code_and_kills_no_thread_of_another_call(failures: list[str]) -> None:
    def spin() -> None:
        inside.set()
        while True:
            pass

    inside = threading.Event()

    async def main() -> None:
        threads = Threads("t")
        ticket = threads.submit(spin)
        await asyncio.to_thread(inside.wait)
        ticket.interrupt()
        with pytest.raises(HandlerTimeoutError):
            await ticket.result
        assert await threads.submit(lambda: 7).result == 7
        threads.close()

    asyncio.run(main())
    assert failures == []


def test_threads_are_reused_and_idle_ones_end_when_closed() -> None:
    names: set[int | None] = set()

    async def main() -> None:
        threads = Threads("reused")
        for _ in range(20):
            await threads.submit(lambda: names.add(threading.get_ident())).result
            await asyncio.sleep(0)
        threads.close()

    asyncio.run(main())
    for thread in threading.enumerate():
        if thread.name == "reused":
            thread.join(10)
    assert len(names) < 20
    assert not any(thread.name == "reused" for thread in threading.enumerate())
