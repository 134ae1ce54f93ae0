"""The worker's process, and N of them: finds the app, handles signals, restarts children that crash."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from random import randrange
from typing import TYPE_CHECKING, Any

import structlog

from outbox import telemetry
from outbox.errors import ConfigurationError, OutboxError
from outbox.settings import Settings
from workers.app import App
from workers.backoff import Backoff
from workers.measures import Measures

if TYPE_CHECKING:
    from workers.reports import Reports
    from workers.worker import Worker

GRACE = 30.0
DEADLINE = 8.0
"""Seconds beyond the grace after which a process that was told to stop is ended, whatever still hangs in it."""

LEFTOVERS = 2.0
"""Seconds that coroutines which were abandoned get to end when their worker is over."""

SUPERVISED = "OUTBOX_SUPERVISED"
"""Set for children: they stop when their standard input ends, because then their supervisor is gone."""

REPORTS_TO = "OUTBOX_REPORTS_TO"
"""The descriptor of a child's pipe to a supervisor that serves metrics."""

STEADY = 30.0
"""Seconds a child must have run for its next crash to count as the first one."""

USAGE_ERROR = 2

RETIRED = 75
"""Exit status of a worker that has handled as many events as it was to, and is to be replaced."""


def load_app(target: str) -> App:
    """The app of `module:name`. The working directory goes to the end of the import path.

    Raises `ConfigurationError` when there is none; an error inside the module itself is not hidden.

    >>> load_app("shop.tasks:app").handlers.keys()
    dict_keys(['send_email'])
    """
    module_name, name = _parts(target)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise _no_module(error.name) from None
        raise
    app = getattr(module, name or "app", None)
    if not isinstance(app, App):
        raise ConfigurationError(f"{module_name} has no workers.App named {name or 'app'!r}")
    return app


def check_target(target: str) -> None:
    """Raise the `ConfigurationError` of `load_app` if there is no such module. Nothing is imported."""
    module_name, _ = _parts(target)
    found: ModuleSpec | None = None
    for end, part in enumerate(parts := module_name.split("."), 1):
        name = ".".join(parts[:end])
        if found is None:
            found = importlib.util.find_spec(part)
        elif found.submodule_search_locations is not None:
            found = PathFinder.find_spec(name, found.submodule_search_locations)
        else:
            found = None
        if found is None:
            raise _no_module(name)


def _parts(target: str) -> tuple[str, str]:
    """Module and name of a target; the working directory is on the import path from then on."""
    module_name, _, name = target.partition(":")
    if not module_name or not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigurationError(f"{target!r} is no MODULE:APP, such as shop.tasks:app")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    return module_name, name


def _no_module(name: str) -> ConfigurationError:
    return ConfigurationError(f"no module {name!r} on the import path or in {Path.cwd()}")


def run(
    target: str,
    settings: Settings,
    processes: int = 1,
    *,
    concurrency: int | None = None,
    grace: float = GRACE,
    max_events: int | None = None,
    total_concurrency: int | None = None,
) -> int:
    """Run workers for the app `target` (`module:name`) until SIGTERM or SIGINT, and return the exit status.

    With one process it is this one; with more, each is a child that is started again when it crashes. `concurrency` is
    per process and handler, `total_concurrency` per process (None for the defaults); `grace` is how many seconds runs
    get to finish. With `max_events` a child that has handled as many, or up to a tenth more so that not all end
    together, is replaced by a new one. Must be called in the main thread.

    >>> run("shop.tasks:app", Settings(), processes=4)
    0
    """
    if processes < 1:
        raise ConfigurationError("processes must be at least 1")
    if max_events is not None and max_events < 1:
        raise ConfigurationError("max_events must be at least 1")
    app = load_app(target)
    if processes == 1 and max_events is None:
        return serve(app, settings, concurrency=concurrency, grace=grace, total_concurrency=total_concurrency)
    return Supervisor(
        target,
        settings,
        processes,
        concurrency=concurrency,
        grace=grace,
        max_events=max_events,
        total_concurrency=total_concurrency,
    ).run()


def serve(
    app: App,
    settings: Settings,
    *,
    concurrency: int | None = None,
    grace: float = GRACE,
    max_events: int | None = None,
    total_concurrency: int | None = None,
) -> int:
    """Run one worker in this process until it is told to stop, or has handled `max_events`: then the exit status is
    `RETIRED`."""
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

    for number in (signal.SIGTERM, signal.SIGINT):
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
        return USAGE_ERROR
    status = RETIRED if worker.retired and not received else 0
    # All is recorded or handed back. The loop's own end waits for coroutines that swallow their cancellation.
    _end_after(LEFTOVERS, status)
    return status


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


class Supervisor:
    """N children, each `python -m workers`. Crashes are answered with a restart, later each time."""

    def __init__(
        self,
        target: str,
        settings: Settings,
        processes: int,
        *,
        concurrency: int | None = None,
        grace: float = GRACE,
        max_events: int | None = None,
        total_concurrency: int | None = None,
    ) -> None:
        self._command = [
            # -P: a user's workers.py in the working directory must not hide this package.
            sys.executable, "-P", "-m", "workers", target, "--grace", str(grace),
        ]  # fmt: skip
        if concurrency is not None:
            self._command += ["--concurrency", str(concurrency)]
        if total_concurrency is not None:
            self._command += ["--total-concurrency", str(total_concurrency)]
        if max_events is not None:
            self._command += ["--max-events", str(max_events)]
        self._environment = os.environ | environment(settings) | {SUPERVISED: "1"}
        self._processes = processes
        self._grace = grace
        self._backoff = Backoff(initial=0.5, maximum=30, jitter=0)
        self._children: dict[int, Child] = {}
        self._signals = 0
        self._log = structlog.get_logger()
        self._settings = settings
        self._reports: Reports | None = None

    def run(self) -> int:
        """Serve until signalled; 0 if every child ended well, else 1.

        Raises `ConfigurationError` for a port that cannot be had.
        """
        if self._settings.metrics_port is None:
            return self._run()
        from workers import reports

        self._reports = reports.Reports()
        with self._reports.serve(self._settings.metrics_host, self._settings.metrics_port):
            return self._run()

    def _run(self) -> int:
        previous = {number: signal.signal(number, self._signalled) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._children = {
                number: Child(self._command, self._environment, number, self._reports)
                for number in range(self._processes)
            }
            while not self._signals:
                if not self._tend():
                    break
                time.sleep(0.1)
            return self._stop()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _tend(self) -> bool:
        """Restart what crashed; False when a child refused to run, which no restart would change."""
        now = time.monotonic()
        for child in self._children.values():
            status = child.status()
            if status is None:
                continue
            if status == USAGE_ERROR:
                return False
            if status == RETIRED:
                self._log.info("worker.replaced", pid=child.process.pid)
                child.crashes = 0
                child.start()
            elif child.restart_at is None:
                child.crashes = 1 if now - child.started_at > STEADY else child.crashes + 1
                delay = self._backoff.delay(child.crashes, 0.0)
                child.restart_at = now + delay
                if self._reports is not None:
                    self._reports.crashed(child.number)
                self._log.error("worker.crashed", pid=child.process.pid, status=status, restart_in=delay)
            elif now >= child.restart_at:
                child.start()
        return True

    def _signalled(self, number: int, frame: object) -> None:
        self._signals += 1
        if self._signals > 1:
            self._tell()

    def _tell(self) -> None:
        for child in self._children.values():
            child.terminate()

    def _stop(self) -> int:
        self._tell()
        deadline = time.monotonic() + self._grace + DEADLINE + 2
        while any(child.status() is None for child in self._children.values()):
            if time.monotonic() > deadline:
                for child in self._children.values():
                    child.kill()
            time.sleep(0.02)
        statuses = [child.status() for child in self._children.values()]
        if USAGE_ERROR in statuses:
            return USAGE_ERROR
        return (
            0
            if all(
                # One that was just starting had no handler for the signal yet, and held nothing.
                status in (0, RETIRED, -signal.SIGTERM) or child.restart_at
                for status, child in zip(statuses, self._children.values(), strict=True)
            )
            else 1
        )


class Child:
    """One worker process."""

    def __init__(
        self, command: list[str], environment: dict[str, str], number: int = 0, reports: Reports | None = None
    ) -> None:
        self.number = number
        self._command = command
        self._environment = environment
        self._reports = reports
        self.crashes = 0
        self.start()

    def start(self) -> None:
        """Start it, again if it ended."""
        self.started_at = time.monotonic()
        self.restart_at: float | None = None
        with contextlib.ExitStack() as stack:
            passed: tuple[int, ...] = ()
            variables: dict[str, str] = {}
            if self._reports is not None:
                passed = (stack.enter_context(self._reports.open(self.number)).fileno(),)
                variables[REPORTS_TO] = str(passed[0])
            self.process = subprocess.Popen(
                self._command,
                env=self._environment | variables,
                stdin=subprocess.PIPE,
                start_new_session=True,
                pass_fds=passed,
            )

    def status(self) -> int | None:
        """Its exit status, None while it runs."""
        return self.process.poll()

    def terminate(self) -> None:
        """Ask it to stop; asked twice, it stops at once."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it by force."""
        if self.process.poll() is None:
            self.process.kill()


def environment(settings: Settings) -> dict[str, str]:
    """The settings as the environment variables of a child."""
    found = {
        "OUTBOX_DATABASE_URL": settings.database_url.get_secret_value() if settings.database_url else None,
        "OUTBOX_REDIS_URL": settings.redis_url.get_secret_value(),
        "OUTBOX_SCHEMA": settings.schema_name,
        "OUTBOX_PREFIX": settings.prefix,
        "OUTBOX_LOG_LEVEL": settings.log_level,
        "OUTBOX_LOG_FORMAT": settings.log_format,
        # One port cannot be that of several.
        "OUTBOX_METRICS_PORT": "",
    }
    return {name: value for name, value in found.items() if value is not None}


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
        return USAGE_ERROR
