"""The handlers that the worker and latency benchmarks run, each in an application of its own."""

from __future__ import annotations

import os
import time
from functools import cache

from sqlalchemy.ext.asyncio import AsyncSession

import workers
from benchmarks.latency import LATENCY_FILE

plain_app = workers.App()
transactional_app = workers.App()
latency_app = workers.App()


@plain_app.handler("bench0")
async def plain(order_id: int, customer: str, total: str, note: str) -> None:
    """Nothing, outside any transaction."""


@transactional_app.handler("bench0")
async def transactional(order_id: int, customer: str, total: str, note: str, session: AsyncSession) -> None:
    """Nothing, in a transaction."""


@cache
def _latency_file() -> int:
    return os.open(os.environ[LATENCY_FILE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@latency_app.handler("order_placed")
async def started(order_id: int, sent_ns: int) -> None:
    """Note when the event was sent and when this began, both on the machine's monotonic clock."""
    now = time.monotonic_ns()
    os.write(_latency_file(), b"%d %d\n" % (sent_ns, now))
