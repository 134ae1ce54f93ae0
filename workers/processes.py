"""Child processes for handlers with `pool="process"`: one run at a time in each, started when needed and kept."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Callable
from typing import cast

from outbox import trace
from outbox.settings import Settings
from workers.child import HEADER, Answer, Hello, Request, find, pack
from workers.errors import ChildDiedError, ChildFailedError, ChildTraceback, HandlerError, HandlerTimeoutError
from workers.failure import describe
from workers.handler import Handler
from workers.job import Job
from workers.outcome import Done
from workers.result import NotKept

START_LIMIT = 60.0
"""Seconds that a child may take to import its handler."""

LAST_WORDS = 0.2
"""Seconds that the answer of a child that died may still be on its way."""

PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from workers.child import main; main(int(sys.argv[1]))"
)


class Child:
    """One child process and the worker's end of its socket."""

    def __init__(
        self, process: Process, lifeline: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._lifeline = os.fdopen(lifeline, "wb")
        self._reader = reader
        self._writer = writer
        self._ended = asyncio.create_task(process.wait())

    @classmethod
    async def start(cls, hello: Hello, ended: Callable[[Child], None]) -> Child:
        """Start one, which imports its handler and answers when it is ready. `ended` is called when it has ended."""
        ours, theirs = socket.socketpair()
        # Not asyncio's PIPE, which may be a socket: the kernel tells a pipe's reader at once that its writer is gone.
        its_end, lifeline = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                # -P: a user's workers.py in the working directory must not hide this package.
                sys.executable, "-P", "-c", PROGRAM, str(theirs.fileno()), json.dumps(sys.path), hello.name,
                stdin=its_end, pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        except BaseException:
            ours.close()
            os.close(lifeline)
            raise
        finally:
            theirs.close()
            os.close(its_end)
        child = cls(process, lifeline, *await asyncio.open_connection(sock=ours))
        child._ended.add_done_callback(lambda _: ended(child))
        child._writer.write(pack(hello))
        return child

    @property
    def alive(self) -> bool:
        return not self._ended.done()

    async def ask(self, request: Request | None) -> Answer:
        """Let it run `request`, or wait until it is ready. Raises `ChildDiedError`."""
        if request is not None:
            self._writer.write(pack(request))
        answer = asyncio.create_task(self._answer())
        try:
            await asyncio.wait({answer, self._ended}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                # Not only its end of the socket: a process that it forked may hold that open.
                await asyncio.wait({answer}, timeout=LAST_WORDS)
            if answer.done() and answer.exception() is None:
                return answer.result()
        finally:
            answer.cancel()
        # What closed its socket without an answer is of no use any more.
        self.kill()
        raise ChildDiedError(manner(await self._ended))

    async def _answer(self) -> Answer:
        (length,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
        data = await self._reader.readexactly(length)
        try:
            return cast("Answer", pickle.loads(data))
        except Exception as error:
            return Answer(text=f"the answer of its child process cannot be read: {describe(error)}")

    def kill(self) -> None:
        """End it now, together with what it started."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def close(self) -> None:
        """End it, and wait for that."""
        self.kill()
        await self._ended
        self._writer.close()
        self._lifeline.close()


class Run:
    """One run in a child: what the lane ends it by."""

    def __init__(self) -> None:
        self.child: Child | None = None
        self.interrupted = False

    def interrupt(self) -> None:
        """Kill the child."""
        self.interrupted = True
        if self.child is not None:
            self.child.kill()

    abandon = interrupt


class Processes:
    """As many children of one handler as runs at once."""

    def __init__(self, handler: Handler, settings: Settings) -> None:
        function = handler.function
        try:
            found = find(function.__module__, function.__qualname__)
        except ChildFailedError as error:
            raise HandlerError(f"handler {handler.name!r}: {error}") from None
        if found is not function:
            raise HandlerError(
                f"handler {handler.name!r} runs in child processes, which import it by name, and "
                f"{function.__module__}.{function.__qualname__} is something else: put @app.handler(...) above all "
                "other decorators, and give no two functions of a module the same name"
            )
        self._hello = Hello(
            handler.name, handler.event_name, function.__module__, function.__qualname__, handler.max_attempts,
            handler.soft_timeout, settings.log_level, settings.log_format,
        )  # fmt: skip
        self._timeout = handler.timeout
        self._idle: list[Child] = []
        self._children: set[Child] = set()
        self._closed = False

    async def run(self, job: Job) -> Done | NotKept | None:
        """Run one delivery, and give what its child says of a result, if there is one. Raises what the handler raised.

        Raises `ChildDiedError` if the child died in the middle of it, `ChildFailedError` if there is none that could
        run it, and `HandlerTimeoutError` when it was interrupted.
        """
        request = Request(
            job.event_id, job.at, job.name, job.key, job.payload, job.headers, job.attempt, trace.headers()
        )
        run = job.ticket = Run()
        try:
            run.child = self._spare()
            if run.child is None:
                await self._start(job, run)
                job.lane.restart_clock(job)
            assert run.child is not None
            answer = await run.child.ask(request)
        except ChildDiedError:
            if run.interrupted:
                raise HandlerTimeoutError("its child process was ended") from None
            raise
        finally:
            job.ticket = None
            await self._give_back(run)
        return _unwrap(answer)

    def _spare(self) -> Child | None:
        return self._idle.pop() if self._idle else None

    async def _start(self, job: Job, run: Run) -> None:
        run.child = await Child.start(self._hello, self._forget)
        self._children.add(run.child)
        if run.interrupted or self._closed:
            run.child.kill()
        ready = asyncio.create_task(run.child.ask(None))
        give_up = asyncio.get_running_loop().time() + START_LIMIT
        while not ready.done():
            if asyncio.get_running_loop().time() > give_up:
                run.child.kill()
            # A timeout is meant for the handler: importing it is none of its time.
            await asyncio.wait({ready}, timeout=self._timeout / 2)
            job.lane.restart_clock(job)
        try:
            _unwrap(ready.result())
        except ChildDiedError as error:
            if run.interrupted:
                raise
            raise ChildFailedError(f"its child process did not start: {error}") from None

    async def _give_back(self, run: Run) -> None:
        child = run.child
        if child is None:
            return
        if child.alive and not run.interrupted and not self._closed:
            self._idle.append(child)
        else:
            await child.close()

    def _forget(self, child: Child) -> None:
        self._children.discard(child)
        if child in self._idle:
            self._idle.remove(child)

    async def close(self) -> None:
        """End all children."""
        self._closed = True
        await asyncio.gather(*(child.close() for child in list(self._children)))


def _unwrap(answer: Answer) -> Done | NotKept | None:
    if answer.text is None:
        return answer.value
    raise (answer.error or ChildFailedError(answer.text)) from ChildTraceback(answer.text, answer.trace)


def manner(status: int) -> str:
    """How a process ended, in words.

    >>> manner(-11)
    'killed by SIGSEGV'
    """
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
