"""One worker as this process: from its start to a signal, and the end by force of what hangs beyond it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from random import randrange
from typing import TYPE_CHECKING, Any

import structlog

from outbox import telemetry
from outbox.errors import ConfigurationError, OutboxError
from outbox.settings import Settings
from workers.app import App
from workers.loading import load_app
from workers.measures import Measures

if TYPE_CHECKING:
    from workers.worker import Worker

GRACE = 30.0
DEADLINE = 8.0
"""Seconds beyond the grace after which a process that was told to stop is ended, whatever still hangs in it."""

LEFTOVERS = 2.0
"""Seconds that coroutines which were abandoned get to end when their worker is over."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What tells a worker to stop."""

SUPERVISED = "OUTBOX_SUPERVISED"
"""Set for children: they stop when their standard input ends, because then their supervisor is gone."""

REPORTS_TO = "OUTBOX_REPORTS_TO"
"""The descriptor of a child's pipe to a supervisor that serves metrics."""

MISCONFIGURED = 2
"""Exit status of a worker whose settings or application are wrong: it would end the same way again."""

REFUSED = 76
"""Exit status of a worker that a server's state keeps from working, between it and its supervisor."""

RETIRED = 75
"""Exit status of a worker that has handled as many events as it was to, and is to be replaced."""


@contextlib.contextmanager
def may_be_told() -> Iterator[None]:
    """From here until the worker listens itself, and holds something, a signal ends the process with status 0."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(0)

    previous = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def serve(
    app: App,
    settings: Settings,
    *,
    concurrency: int | None = None,
    grace: float = GRACE,
    max_events: int | None = None,
    total_concurrency: int | None = None,
) -> int:
    """Run one worker in this process until it is told to stop, and return the exit status: 0; `RETIRED` when it has
    handled `max_events`; `MISCONFIGURED` or `REFUSED` when it cannot work. Raises `ConfigurationError` before it began.
    """
    # A process that only starts others does without.
    from outbox.schema import SCHEMA
    from workers.worker import DEFAULT_CONCURRENCY, Worker

    if settings.schema_name != SCHEMA:
        raise ConfigurationError(
            f"handlers' outbox.add writes to the schema {SCHEMA!r} and not to {settings.schema_name!r}: "
            f"set OUTBOX_SCHEMA={settings.schema_name} in the environment"
        )
    if max_events is not None:
        # Children that began together would else end together.
        max_events += randrange(max_events // 10 + 1)
    reports_to = os.environ.pop(REPORTS_TO, None)
    measures = None if settings.metrics_port is None and reports_to is None else Measures()
    worker = Worker(
        app,
        settings,
        concurrency=concurrency or DEFAULT_CONCURRENCY,
        grace=grace,
        max_events=max_events,
        total_concurrency=total_concurrency,
        measures=measures,
        standstill=settings.standstill,
    )
    with contextlib.ExitStack() as stack:
        if measures is not None:
            from workers import monitoring, reports

            pages = monitoring.Pages(worker, measures, settings)
            if reports_to is not None:
                reports.answer(pages, int(reports_to))
            if settings.metrics_port is not None:
                stack.enter_context(pages.serve(settings.metrics_host, settings.metrics_port))
        # What is loaded by now stays: a collection that looks through all of it stops every handler for 50 ms.
        gc.freeze()
        status = _event_loop()(_until_signalled(worker, grace))
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _event_loop() -> Callable[[Coroutine[Any, Any, int]], int]:
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    return uvloop.run


async def _until_signalled(worker: Worker, grace: float) -> int:
    loop = asyncio.get_running_loop()
    received = 0
    main = asyncio.current_task()

    def stop() -> None:
        nonlocal received
        received += 1
        if received == 1:
            _end_after(grace + DEADLINE)
            worker.request_stop()
            if not worker.started and main is not None:
                main.cancel()
        else:
            _end_after(DEADLINE)
            worker.request_stop(now=True)

    for number in SIGNALS:
        loop.add_signal_handler(number, stop)
    if os.environ.get(SUPERVISED):
        threading.Thread(target=_watch_supervisor, args=(loop, stop), daemon=True).start()
    try:
        await worker.run()
    except asyncio.CancelledError:
        if not received:
            raise
        await worker.stop()
    except OutboxError as error:
        structlog.get_logger().error("worker.refused", reason=str(error))
        await worker.stop()
        return _status_of(error)
    status = RETIRED if worker.retired and not received else 0
    # All is recorded or handed back. The loop's own end waits for coroutines that swallow their cancellation.
    _end_after(LEFTOVERS, status)
    return status


def _status_of(error: OutboxError) -> int:
    return MISCONFIGURED if isinstance(error, ConfigurationError) else REFUSED


def _watch_supervisor(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    while os.read(0, 1):
        pass
    loop.call_soon_threadsafe(stop)


def _end_after(seconds: float, status: int = 1) -> None:
    """End the process by force then, even if the event loop itself is blocked."""

    def end() -> None:
        os.write(2, b"worker: did not stop in time, ending by force\n")
        os._exit(status)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def main(arguments: list[str] | None = None) -> int:
    """`python -m workers MODULE:APP`: one worker with the settings of the environment."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m workers", description="Run one worker process.")
    parser.add_argument("target", metavar="MODULE:APP")
    parser.add_argument("--concurrency", type=int, help="runs at once per handler")
    parser.add_argument("--total-concurrency", type=int, help="runs at once of all handlers")
    parser.add_argument("--max-events", type=int, help=f"end after as many events, with status {RETIRED}")
    parser.add_argument("--grace", type=float, default=GRACE, help="seconds runs get to finish after SIGTERM")
    given = parser.parse_args(arguments)
    settings = Settings()
    telemetry.configure(settings.log_level, settings.log_format)
    try:
        with may_be_told():
            return serve(
                load_app(given.target),
                settings,
                concurrency=given.concurrency,
                grace=given.grace,
                max_events=given.max_events,
                total_concurrency=given.total_concurrency,
            )
    except OutboxError as error:
        structlog.get_logger().error("worker.refused", reason=str(error))
        return _status_of(error)
