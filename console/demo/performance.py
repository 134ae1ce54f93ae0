"""One performance of the demo, from an empty folder to an exit status."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console

from console.demo import report
from console.demo.scenario import Outcome, play
from console.demo.stage import Stage
from console.demo.view import for_console
from outbox.errors import ConfigurationError

FEWEST_REQUESTS = 20
"""With fewer there is no middle to kill in."""


def run(keep: bool = False, requests: int = 1000, seed: int | None = None) -> int:
    """Perform the demo and return the exit status: 0 if the books agree, 1 if they do not, 130 when it was interrupted.

    `keep` leaves everything up until Ctrl-C and prints the addresses. The same `seed` makes the same requests. Raises
    `UnusableError` when the shop or a server is not installed, `ConfigurationError` for too few requests.

    >>> run(requests=200, seed=1)
    0
    """
    if requests < FEWEST_REQUESTS:
        raise ConfigurationError(f"the demo needs at least {FEWEST_REQUESTS} requests")
    if seed is None:
        seed = random.randrange(1_000_000)
    console = Console()
    began = time.monotonic()
    with _interruptible():
        try:
            view = for_console(console)
            view.say("starting PostgreSQL, Valkey, the shop, two relays and two workers")
            with Stage() as stage:
                with view:
                    outcome = asyncio.run(_until_interrupted(play(stage, view, requests=requests, seed=seed)))
                report.reconciliation(console, outcome, seed=seed, seconds=time.monotonic() - began)
                if not outcome.good:
                    report.logs(console, stage)
                if keep:
                    report.addresses(console, stage)
                    _wait_for_interrupt()
        except KeyboardInterrupt:
            view.say("interrupted; everything is stopped")
            return 130
    return 0 if outcome.good else 1


async def _until_interrupted(performance: Coroutine[Any, Any, Outcome]) -> Outcome:
    """Its outcome. A signal cancels it until it is over: one cancellation may get lost in a client library."""
    performing = asyncio.create_task(performance)
    interrupted = asyncio.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    waiting = asyncio.create_task(interrupted.wait())
    await asyncio.wait({performing, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not interrupted.is_set():
        return await performing
    while not performing.done():
        performing.cancel()
        await asyncio.wait({performing}, timeout=0.5)
    raise KeyboardInterrupt


def _wait_for_interrupt() -> None:
    with suppress(KeyboardInterrupt):
        signal.pause()


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does, also when the shell started it in the background, deaf to Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
