"""Programs as processes of their own that start in milliseconds: copies of one interpreter with the libraries loaded.

Each is a process as any other: it has its own environment, arguments, working directory and output, and can be killed.
None of our own code is loaded before the copy is made, so what it reads of its environment at import is right.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LIBRARIES = [
    "anyio",
    "asyncio",
    "fast_depends",
    "logging",
    "prometheus_client",
    "psycopg",
    "pytest",
    "pydantic",
    "pydantic_settings",
    "redis",
    "rich.table",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy.orm",
    "structlog",
    "tenacity",
    "typer",
    "typer.main",
    "uuid_utils.compat",
    "uvloop",
]
"""What our programs, and tests that are run by tests, load before code of ours."""


class Forked:
    """A running program, to be used as a `subprocess.Popen`."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self.pid = int(self._link.recv(64))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, when it has ended. Raises `subprocess.TimeoutExpired`."""
        status = self._ended(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return status

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._link], [], [], timeout)[0]:
            self.returncode = int(self._link.recv(64))
            self._link.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()


class Programs:
    """Starts programs of this interpreter. What it started ends with it, and it with this process."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server = subprocess.Popen(
            [sys.executable, "-P", __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
        theirs.close()
        self._link = ours

    def start(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
    ) -> Forked:
        """What `python *arguments` does: `["-m", module, …]`, `["-c", code, …]` or `[script, …]`, with or without `-P`.

        `env` and `cwd` are those of this process if not given. `stdin`, `stdout` and `stderr` are open files.
        """
        wanted = {"arguments": list(arguments), "env": dict(os.environ if env is None else env)}
        wanted["cwd"] = os.fspath(Path.cwd() if cwd is None else cwd)
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with tempfile.TemporaryFile() as request, open(os.devnull, "r+b", buffering=0) as nothing, its:
            request.write(json.dumps(wanted).encode())
            request.seek(0)
            files = [nothing if each is None else each for each in (stdin, stdout, stderr)]
            numbers = [each if isinstance(each, int) else each.fileno() for each in (request, its, *files)]
            socket.send_fds(self._link, [b"."], numbers)
            return Forked(mine)

    def run(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        input: str | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; what it wrote is in `stdout` and `stderr`."""
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write((input or "").encode())
            given.seek(0)
            program = self.start(arguments, env=env, cwd=cwd, stdin=given, stdout=out, stderr=err)
            try:
                status = program.wait(timeout)
            except subprocess.TimeoutExpired:
                program.kill()
                raise
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(list(arguments), status, out.read().decode(), err.read().decode())

    def close(self) -> None:
        """End everything."""
        self._link.close()
        self._server.wait()


def _serve(link: socket.socket) -> dict[str, Any]:
    """Make copies of this process until the other end is closed. Returns in every copy, with what it is to do."""
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, socket.socket] = {}
    while True:
        ready = select.select([link, awake], [], [])[0]
        if awake in ready:
            os.read(awake, 4096)
            for pid in list(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    with running.pop(pid) as told, contextlib.suppress(BrokenPipeError):
                        told.send(str(os.waitstatus_to_exitcode(status)).encode())
        if link in ready:
            _, numbers, *_ = socket.recv_fds(link, 1, 5)
            if not numbers:
                sys.exit()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _die_with_parent()
                for number in (awake, wake, link.detach(), *(told.detach() for told in running.values())):
                    os.close(number)
                return _become(*numbers)
            running[pid] = told = socket.socket(fileno=numbers[1])
            told.send(str(pid).encode())
            for number in (numbers[0], *numbers[2:]):
                os.close(number)


def _die_with_parent() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))


def _become(request: int, told: int, *files: int) -> dict[str, Any]:
    """Take over the environment, the working directory and the files of a request."""
    os.close(told)
    with open(request, "rb") as given:
        given.seek(0)
        wanted: dict[str, Any] = json.load(given)
    os.environ.clear()
    os.environ.update(wanted["env"])
    os.chdir(wanted["cwd"])
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    # What these are for is found out when they are opened: a terminal, a pipe or a file.
    by_line = os.isatty(1) or bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", 1 if by_line else -1, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    return wanted


class _Leaving:
    """Ends a copy without taking apart what was loaded: for a small program that is most of its time."""

    status: int | None = None

    def __call__(self) -> None:
        """The interpreter's last act before it does that; threads have been waited for and exit functions have run."""
        if self.status is None:
            return
        with contextlib.suppress(OSError, ValueError, AttributeError):
            # What cannot be written is the interpreter's to tell.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.status)


def _run(arguments: list[str]) -> int:
    """Do what the interpreter does with its arguments. The exit status, if it is a number and no error's."""
    try:
        _start(arguments)
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            raise
        return end.code or 0
    return 0


def _start(arguments: list[str]) -> None:
    kind, *rest = arguments[1:] if arguments[0] == "-P" else arguments
    safe = arguments[0] == "-P" or os.environ.get("PYTHONSAFEPATH")
    given = os.environ.get("PYTHONPATH")
    sys.path[:0] = ([] if safe else ["" if kind == "-c" else os.getcwd()]) + (given.split(os.pathsep) if given else [])
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = [kind, *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    _die_with_parent()
    # As on a terminal, whatever these tests were started by: nohup, or a shell's background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    leaving = atexit.register(_Leaving())
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    # A collection in a copy must not touch, and so copy, every page.
    gc.collect()
    gc.freeze()
    leaving.status = _run(_serve(socket.socket(fileno=int(sys.argv[1])))["arguments"])
    sys.exit(leaving.status)
