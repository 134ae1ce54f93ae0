from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from workers.errors import SoftTimeout
from workers.soft_timeout import in_coroutine, in_thread


def told(function: Callable[..., Any], seconds: float = 0.01) -> Any:
    async def main() -> Any:
        return await in_coroutine(function, seconds)()

    return asyncio.run(main())


def test_a_coroutine_that_is_told_may_clean_up_wait_and_return() -> None:
    async def function() -> str:
        try:
            await asyncio.sleep(1000)
        except SoftTimeout:
            await asyncio.sleep(0.05)
            current = asyncio.current_task()
            assert current is not None
            return f"cleaned up, {current.cancelling()} cancellations left"
        return "not told"

    assert told(function) == "cleaned up, 0 cancellations left"


def test_it_is_told_once_and_lets_it_pass_if_it_likes() -> None:
    async def twice() -> str:
        try:
            await asyncio.sleep(1000)
        except SoftTimeout:
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.1)
        return "once"

    async def passes() -> None:
        await asyncio.sleep(1000)

    assert told(twice) == "once"
    with pytest.raises(SoftTimeout, match="longer than its soft timeout"):
        told(passes)


def test_tasks_of_a_group_are_cancelled_and_the_soft_timeout_comes_out_of_it() -> None:
    ended: list[str] = []

    async def part() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append("part")

    async def function() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(part())

    with pytest.raises(SoftTimeout):
        told(function)
    assert ended == ["part"]


def test_a_timeout_of_the_handlers_own_is_not_mistaken_for_it() -> None:
    async def inner_first() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(1000)
        except TimeoutError:
            return "its own"
        return "nothing"

    async def inner_last() -> None:
        async with asyncio.timeout(1000):
            await asyncio.sleep(1000)

    assert told(inner_first, 1000) == "its own"
    with pytest.raises(SoftTimeout):
        told(inner_last)


def test_results_and_errors_of_those_that_are_quick_pass_unchanged() -> None:
    async def quick() -> int:
        await asyncio.sleep(0)
        return 7

    async def wrong() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    assert told(quick, 1000) == 7
    with pytest.raises(ValueError, match="no"):
        told(wrong, 1000)


def test_a_real_cancellation_goes_before_it() -> None:
    found: list[BaseException] = []

    async def function() -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError as error:
            found.append(error)
            raise

    async def cancelled_first() -> None:
        async def wrapped() -> None:
            current = asyncio.current_task()
            assert current is not None
            # Both are due before either is delivered.
            loop.call_later(0.01, current.cancel)
            await in_coroutine(function, 0.01)()

        loop = asyncio.get_running_loop()
        await asyncio.wait({asyncio.create_task(wrapped())})

    asyncio.run(cancelled_first())
    assert type(found[0]) is asyncio.CancelledError


def test_a_thread_is_told_once_and_nothing_reaches_what_it_does_next() -> None:
    def function() -> str:
        try:
            while True:
                pass
        except SoftTimeout:
            for _ in range(100_000):
                pass
            return "cleaned up"

    async def main() -> tuple[str, str]:
        call = in_thread(function, 0.05)
        quick = in_thread(lambda: "quick", 0.05)
        first = await asyncio.to_thread(call)
        for _ in range(50):
            assert await asyncio.to_thread(quick) == "quick"
        return first, await asyncio.to_thread(call)

    assert asyncio.run(main()) == ("cleaned up", "cleaned up")
