"""The handlers that the benchmarks run in worker processes, each in an application of its own."""

from __future__ import annotations

import asyncio
import os
import struct
import time
from functools import cache

from sqlalchemy.ext.asyncio import AsyncSession

import workers
from benchmarks.idle import IDLE_HANDLERS, idle_event
from benchmarks.laggard import EVENT_NAME, LAGGARD_CONCURRENCY, LAGGARD_SECONDS, SLOW_FILE, STARTS_FILE
from benchmarks.latency import LATENCY_FILE
from benchmarks.window import RECORD, WINDOW_FILE

plain_app = workers.App()
transactional_app = workers.App()
batch_app = workers.App()
thread_app = workers.App()
process_app = workers.App()
idle_app = workers.App()
latency_app = workers.App()
window_app = workers.App()
quick_app = workers.App()
laggard_app = workers.App()


@plain_app.handler("bench0")
async def plain(order_id: int, customer: str, total: str, note: str) -> None:
    """Nothing, outside any transaction."""


@transactional_app.handler("bench0")
async def transactional(order_id: int, customer: str, total: str, note: str, session: AsyncSession) -> None:
    """Nothing, in a transaction."""


@batch_app.handler("bench0", batch=100)
async def batch(events: list[workers.Event], session: AsyncSession) -> None:
    """Nothing but reading the payloads, in one transaction for all of them."""
    for event in events:
        event.payload["order_id"]


@thread_app.handler("bench0")
def thread(order_id: int, customer: str, total: str, note: str) -> None:
    """Nothing, in a thread."""


@process_app.handler("bench0", pool="process")
def process(order_id: int, customer: str, total: str, note: str) -> None:
    """Nothing, in a child process."""


async def nothing() -> None:
    """Nothing."""


for number in range(IDLE_HANDLERS):
    idle_app.handler(idle_event(number), name=idle_event(number))(nothing)


@cache
def _file(variable: str) -> int:
    return os.open(os.environ[variable], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@latency_app.handler("order_placed")
async def started(order_id: int, sent_ns: int) -> None:
    """Note when the event was sent and when this began, both on the machine's monotonic clock."""
    now = time.monotonic_ns()
    os.write(_file(LATENCY_FILE), b"%d %d\n" % (sent_ns, now))


@window_app.handler("bench0")
async def window(order_id: int, customer: str, total: str, note: str, event: workers.Event) -> None:
    """Note which event this was, and when it ended."""
    os.write(_file(WINDOW_FILE), RECORD.pack(event.id.bytes, time.time_ns()))


def _note_start(number: int, sent_ns: int) -> None:
    os.write(_file(STARTS_FILE), struct.pack("=qqq", number, sent_ns, time.monotonic_ns()))


@quick_app.handler(EVENT_NAME)
async def quick(number: int, sent_ns: int, note: str) -> None:
    """Note that it was started, every time."""
    _note_start(number, sent_ns)


def _slow() -> bool:
    return os.path.exists(os.environ[SLOW_FILE])


@laggard_app.handler(EVENT_NAME, concurrency=LAGGARD_CONCURRENCY)
async def laggard(number: int, sent_ns: int, note: str) -> None:
    """The same; and take a hundred times as long as its sibling may, while the file exists that says so."""
    _note_start(number, sent_ns)
    if _slow():
        await asyncio.sleep(LAGGARD_SECONDS)
