from __future__ import annotations

import asyncio

from workers.worker import end


def test_a_task_that_drops_a_cancellation_is_ended_all_the_same() -> None:
    dropped = 0

    async def stubborn() -> None:
        nonlocal dropped
        while dropped < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                dropped += 1

    async def main() -> None:
        tasks = [asyncio.create_task(stubborn()), asyncio.create_task(asyncio.sleep(0))]
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await end(tasks)
        assert all(task.done() for task in tasks)

    asyncio.run(main())
    assert dropped == 2
