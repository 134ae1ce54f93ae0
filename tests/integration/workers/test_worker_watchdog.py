"""What is said about a handler that blocks the event loop, and which loop it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

BLOCKING = """
import asyncio, time
import workers
app = workers.App()

def deep(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)

@app.handler("e")
async def blocker(seconds: float) -> None:
    deep(seconds)

@app.handler("f")
async def bystander() -> None:
    await asyncio.sleep(1.5)
"""


def lines(worker: Any, event: str) -> list[str]:
    return [line for line in worker.output().splitlines() if f"event={event}" in line]


def test_a_handler_that_blocks_the_loop_is_named_with_its_stack_once_and_again_when_it_is_over(
    outbox: Any, start: Callable[..., Any], wait_for: Any
) -> None:
    outbox.attach("blocker", "e")
    outbox.attach("bystander", "f")
    worker = start(BLOCKING)
    wait_for(worker.started)
    outbox.publish("f", {})
    (event_id,) = outbox.publish("e", {"seconds": 3})
    wait_for(lambda: lines(worker, "loop.free"))
    wait_for(lambda: outbox.count("done") == 2)
    (blocked,) = [line for line in lines(worker, "loop.blocked") if event_id in line]
    assert "handler=blocker" in blocked
    assert "deep(seconds)" in blocked
    (free,) = [line for line in lines(worker, "loop.free") if event_id in line]
    assert "handler=blocker" in free
    assert float(re.search(r"seconds=([\d.]+)", free)[1]) >= 3  # type: ignore[index]
    assert "bystander" not in blocked + free


HOLDING = """
import workers
app = workers.App()

@app.handler("e")
async def h(n: int) -> None:
    while sum(range(n)) < 0:
        pass
"""


def test_what_lets_no_thread_run_is_reported_when_it_is_over(
    outbox: Any, start: Callable[..., Any], wait_for: Any
) -> None:
    outbox.attach("h", "e")
    worker = start(HOLDING)
    outbox.publish("e", {"n": 100_000_000})
    wait_for(lambda: outbox.count("done") == 1)
    wait_for(lambda: lines(worker, "loop.free"))


LOOP = """
import asyncio, sys
{before}
import workers
app = workers.App()

@app.handler("e")
async def h() -> None:
    loop = type(asyncio.get_running_loop())
    print("the loop is", loop.__module__, flush=True)
"""


@pytest.mark.parametrize(("before", "loop"), [("", "uvloop"), ("sys.modules['uvloop'] = None", "asyncio")])
def test_the_loop_is_uvloops_where_that_is_installed(
    before: str, loop: str, outbox: Any, start: Callable[..., Any], wait_for: Any
) -> None:
    outbox.attach("h", "e")
    worker = start(LOOP.format(before=before))
    outbox.publish("e", {})
    wait_for(lambda: outbox.count("done") == 1)
    assert f"the loop is {loop}" in worker.output()
