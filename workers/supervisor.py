"""N workers, each a process of its own: started again when they crash, or when they have handled enough."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import structlog

from outbox.errors import ConfigurationError
from outbox.settings import Settings
from workers.backoff import Backoff
from workers.loading import load_app
from workers.service import (
    DEADLINE,
    GRACE,
    MISCONFIGURED,
    REFUSED,
    REPORTS_TO,
    RETIRED,
    SIGNALS,
    SUPERVISED,
    may_be_told,
    serve,
)  # fmt: skip
from workers.standstill import ENDED_BY

if TYPE_CHECKING:
    from workers.reports import Reports

STEADY = 30.0
"""Seconds a child must have run for its next crash to count as the first one."""


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
    """Run workers for the app `target` (`module:name`) until SIGTERM or SIGINT, and return the exit status: 0 when all
    ended well, `MISCONFIGURED` when settings or application are wrong, else 1. Raises `ConfigurationError` for what is
    seen to be wrong before anything is started.

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
    with may_be_told():
        app = load_app(target)
        if processes == 1 and max_events is None:
            status = serve(app, settings, concurrency=concurrency, grace=grace, total_concurrency=total_concurrency)
            return 1 if status == REFUSED else status
        return Supervisor(
            target,
            settings,
            processes,
            concurrency=concurrency,
            grace=grace,
            max_events=max_events,
            total_concurrency=total_concurrency,
        ).run()


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
        """Serve until signalled; 0 if every child ended well, `MISCONFIGURED` if one is, else 1.

        Raises `UnusableError` for a port that cannot be had.
        """
        if self._settings.metrics_port is None:
            return self._run()
        from workers import reports

        self._reports = reports.Reports()
        with self._reports.serve(self._settings.metrics_host, self._settings.metrics_port):
            return self._run()

    def _run(self) -> int:
        previous = {number: signal.signal(number, self._signalled) for number in SIGNALS}
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
            if status in (MISCONFIGURED, REFUSED):
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
                facts = {"reason": "its event loop stood still"} if status == -ENDED_BY else {}
                self._log.error("worker.crashed", pid=child.process.pid, status=status, restart_in=delay, **facts)
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
        if MISCONFIGURED in statuses:
            return MISCONFIGURED
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
        "OUTBOX_STANDSTILL": str(settings.standstill),
        # One port cannot be that of several.
        "OUTBOX_METRICS_PORT": "",
    }
    return {name: value for name, value in found.items() if value is not None}
