"""The relay and the worker as child processes, whose output goes to the one log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

from console.dev.log import Form, Log
from console.servers import uninterrupted
from outbox.settings import Settings
from workers.backoff import Backoff
from workers.service import SUPERVISED
from workers.supervisor import environment

GRACE = 5.0
"""Seconds that runs get to come to their end when the worker is to stop; then they are handed back."""

HURRY = 4.0
"""Seconds beyond that after which a child that does not end is killed."""


class Child:
    """A process that ends when its standard input does, and so with this one."""

    def __init__(self, name: str, command: list[str], variables: Mapping[str, str], log: Log) -> None:
        self.name = name
        self._command = command
        self._variables = variables
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None
        self._reading: threading.Thread | None = None

    def start(self) -> None:
        """Start it, again if it ended."""
        with uninterrupted():
            self.process = subprocess.Popen(
                # -P: a user's workers.py in the working directory must not hide our packages.
                [sys.executable, "-P", "-m", *self._command],
                env=self._variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        self._reading = self._log.take(self.name, self.process.stdout)

    def status(self) -> int | None:
        """Its exit status; None while it runs, and before the start."""
        if self.process is None or (status := self.process.poll()) is None:
            return None
        # Its last lines come before what is said of its end. A process of its own may hold the pipe open.
        if self._reading is not None:
            self._reading.join(1)
        return status

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def terminate(self) -> None:
        """Ask it to stop."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it by force."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()

    def wait(self) -> None:
        """Wait for its end, if it was started."""
        if self.process is not None:
            self.process.wait()
            self.status()


def variables(settings: Settings, form: Form) -> dict[str, str]:
    """The environment of both: these settings, whatever the caller's environment and `.env` say."""
    formats = {Form.JSON: "json", Form.COLOURED: "console", Form.PLAIN: "logfmt"}
    direct = settings.relay_database_url or settings.database_url
    assert direct is not None
    return (
        os.environ
        | environment(settings)
        | {
            "OUTBOX_RELAY_DATABASE_URL": direct.get_secret_value(),
            "OUTBOX_LOG_FORMAT": formats[form] if settings.log_format == "auto" else settings.log_format,
            "PYTHONUNBUFFERED": "1",
        }
    )


def relay(settings: Settings, log: Log) -> Child:
    """The relay, not started."""
    return Child("relay", ["console.dev.tether", "relay"], variables(settings, log.form), log)


class Worker:
    """The worker, started again when the code changed, and when it was killed.

    `waits`: whether a worker that ended by itself is started again by the next change, or not at all.
    """

    def __init__(self, target: str, settings: Settings, log: Log, *, concurrency: int | None, waits: bool) -> None:
        command = ["workers", target, "--grace", str(GRACE)]
        if concurrency is not None:
            command += ["--concurrency", str(concurrency)]
        its = variables(settings, log.form) | {SUPERVISED: "1"}
        if "log_level" not in settings.model_fields_set:
            # With the traceback of every failure: who develops should not have to look for it in a dead letter.
            its["OUTBOX_LOG_LEVEL"] = "debug"
        self.child = Child("worker", command, its, log)
        self._log = log
        self._waits = waits
        self._backoff = Backoff(initial=0.5, maximum=30, jitter=0)
        self._crashes = 0
        self._restart_at: float | None = None
        self._kill_at: float | None = None
        self._waiting = False

    def start(self) -> None:
        """Start it for the first time."""
        self.child.start()

    def restart(self) -> None:
        """Let the worker stop; a new one follows when it has."""
        self._crashes = 0
        if self.child.running:
            if self._kill_at is None:
                self._kill_at = time.monotonic() + GRACE + HURRY
                self.child.terminate()
        else:
            self._restart_at = 0.0

    def tend(self) -> int | None:
        """Do what is due; the exit status when the worker ended for good, else None."""
        now = time.monotonic()
        status = self.child.status()
        if status is None:
            if self._kill_at is not None and now > self._kill_at:
                self.child.kill()
            return None
        if self._kill_at is not None:
            self._kill_at, self._restart_at = None, 0.0
        if self._restart_at is not None:
            if now >= self._restart_at:
                self._restart_at, self._waiting = None, False
                self.child.start()
            return None
        if status > 0 and not self._waits:
            return status
        if status > 0 and not self._waiting:
            self._waiting = True
            self._log.say("the worker ended; it is started again when a file changes", "error")
        elif status <= 0:
            self._crashes += 1
            delay = self._backoff.delay(self._crashes, 0.0)
            self._restart_at = now + delay
            self._log.say(f"the worker was ended by {ended_by(status)}; it is started again in {delay:g} s", "error")
        return None


def ended_by(status: int) -> str:
    """What a process' exit status says, in words.

    >>> ended_by(-9)
    'SIGKILL'
    """
    if status >= 0:
        return f"itself, with status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
