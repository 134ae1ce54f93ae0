"""A lane of batches waits for company on either event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
import structlog
import uvloop

import workers
from workers.batch_lane import BatchLane

app = workers.App()


@app.handler("note", batch=8)
async def gather(events: list[workers.Event]) -> None:
    """Nothing."""


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_wait_that_is_over_when_it_is_set_may_be_set_again(run: Callable[[Any], None]) -> None:
    async def wait_twice() -> None:
        handler, log, unused = app.handlers["gather"], structlog.get_logger(), cast(Any, None)
        lane = BatchLane(handler, capacity=1, run=unused, recorder=unused, changed=lambda: None, log=log)
        over = asyncio.get_running_loop().time() - 1
        lane._fill_at(over)
        lane._fill_at(over - 1)

    run(wait_twice())
