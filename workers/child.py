"""A child process of a `pool="process"` handler: serves one run after the other until its worker is gone.

It is started with a socket, over which requests come and answers go, and with a pipe as its standard input, of which
the worker holds the other end: when that closes the child ends, whatever it is doing.
"""

from __future__ import annotations

import contextlib
import contextvars
import fcntl
import importlib
import os
import pickle
import signal
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from structlog.contextvars import bind_contextvars

from outbox import telemetry, trace
from workers import binding, failure
from workers.arguments import arguments
from workers.dependencies import composed
from workers.errors import ChildFailedError
from workers.handler import Handler
from workers.job import Job
from workers.outcome import Done, take
from workers.result import NotKept, kept
from workers.soft_timeout import in_main_thread

HEADER = struct.Struct("!Q")
"""The length of the message that follows."""

LARGEST_ERROR = 256 * 1024
"""Bytes of a pickled exception; a larger one travels as text."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What a child has to know before its first run."""

    name: str
    event_name: str
    module: str
    qualname: str
    max_attempts: int
    soft_timeout: float | None
    log_level: str
    log_format: str


@dataclass(frozen=True, slots=True)
class Request:
    """One run: the event as it is stored, which attempt this is, and what is in force around it."""

    event_id: str
    at: int
    name: str
    key: str
    payload: str
    headers: str
    attempt: int
    carried: dict[str, str]
    """Trace context, of the `process` span where there is one, and correlation id."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a run ended: well, or with an exception, of which there is `error` or at least `text`."""

    value: Done | NotKept | None = None
    error: BaseException | None = None
    text: str | None = None
    """What the error says and where it was raised: its traceback does not survive the way between processes."""
    trace: str | None = None
    """That traceback, as text."""


def pack(message: object) -> bytes:
    """A message as it goes over the socket."""
    data = pickle.dumps(message)
    return HEADER.pack(len(data)) + data


def find(module: str, qualname: str) -> Callable[..., Any]:
    """The function of this name, imported. Raises `ChildFailedError` when there is none, and what the import raises."""
    found: Any = importlib.import_module(module)
    try:
        for part in qualname.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise ChildFailedError(f"module {module} has no {qualname}, by which a child process looks for it") from None
    return cast("Callable[..., Any]", found)


def main(descriptor: int) -> None:
    """Serve the worker at the other end of the socket `descriptor`."""
    end_with_worker()
    connection = socket.socket(fileno=descriptor)
    hello = _receive(connection)
    if hello is None:
        return
    telemetry.configure(hello.log_level, hello.log_format)
    try:
        function = find(hello.module, hello.qualname)
        handler = Handler(
            hello.name, hello.event_name, function, binding.compile(function, hello.name), hello.max_attempts
        )
    except BaseException as error:
        connection.sendall(pack(failed(error)))
        return
    call = composed(handler)
    if hello.soft_timeout is not None:
        call = in_main_thread(call, hello.soft_timeout)
    connection.sendall(pack(Answer()))
    while (request := _receive(connection)) is not None:
        connection.sendall(_answer(handler, call, request))


def end_with_worker() -> None:
    """Let this process and its own children end when the worker closes the pipe, or dies."""
    lifeline = os.dup(0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(lifeline,), name="outbox lifeline", daemon=True).start()
    if hasattr(os, "O_ASYNC"):
        # The kernel ends what holds the interpreter and would not let the thread run: SIGIO's default is the end.
        with contextlib.suppress(OSError):
            fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgid(0))
            fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def _watch(lifeline: int) -> None:
    while os.read(lifeline, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def _receive(connection: socket.socket) -> Any:
    """The next message, None when the worker has closed the socket."""
    header = _exactly(connection, HEADER.size)
    data = header and _exactly(connection, HEADER.unpack(header)[0])
    return pickle.loads(data) if data else None


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = connection.recv(min(count, 1 << 20))
        if not part:
            return b""
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _answer(handler: Handler, call: Callable[..., Any], request: Request) -> bytes:
    nowhere = cast(Any, None)
    job = Job(nowhere, request.event_id, request.at, request.name, request.key, request.payload, request.headers)
    job.attempt = request.attempt
    try:
        value = contextvars.copy_context().run(_called, handler, call, job, request.carried)
        take(value)
        # As its JSON: the value itself may be large, or of a type that does not travel.
        return pack(Answer(None if value is None else kept(value)))
    except BaseException as error:
        return pack(failed(error))


def _called(handler: Handler, call: Callable[..., Any], job: Job, carried: dict[str, str]) -> Any:
    bind_contextvars(handler=handler.name, event_id=job.event_id, attempt=job.attempt)
    trace.receive(carried)
    return call(**arguments(handler, job))


def failed(error: BaseException) -> Answer:
    """The answer that carries `error`: itself, if it survives the way, and what it says."""
    text = failure.describe(error)
    try:
        data = pickle.dumps(error)
        carried = len(data) <= LARGEST_ERROR and type(pickle.loads(data)) is type(error)
    except Exception:
        carried = False
    return Answer(error=error if carried else None, text=text, trace=failure.trace(error))
