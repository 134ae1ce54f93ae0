"""Threads for plain `def` handlers. They are daemons, so a hanging one cannot keep the process alive."""

from __future__ import annotations

import asyncio
import ctypes
import queue
import threading
from collections.abc import Callable
from typing import Any

from workers.errors import HandlerTimeoutError, SoftTimeout


class Ticket:
    """One call in a thread: awaitable by `result`, interruptible at best effort."""

    def __init__(self, call: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self.result: asyncio.Future[Any] = loop.create_future()
        self._loop = loop
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._over = False
        self._abandoned = False
        self.interrupted = False

    def run(self) -> None:
        """Make the call, in the calling thread."""
        with self._lock:
            if self._over:
                return
            self._thread = threading.get_ident()
        value: Any = None
        error: BaseException | None = None
        try:
            value = self.call()
        except BaseException as raised:
            error = raised
        with self._lock:
            self._over = True
            if not self._abandoned:
                self._loop.call_soon_threadsafe(self._settle, value, error)

    def _settle(self, value: Any, error: BaseException | None) -> None:
        if self.result.done():
            return
        if isinstance(error, StopIteration):
            error = RuntimeError("the handler raised StopIteration")
        if error is None:
            self.result.set_result(value)
        else:
            self.result.set_exception(error)

    def interrupt(self) -> None:
        """Raise `HandlerTimeoutError` in the thread. A call into C notices it only when it returns."""
        self.interrupted = True
        with self._lock:
            if self._over:
                return
            if self._thread is None:
                self._over = True
                self._settle(None, HandlerTimeoutError("interrupted before it began"))
                return
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread), ctypes.py_object(HandlerTimeoutError)
            )

    def abandon(self) -> None:
        """Wait no longer for the thread. From now on it never touches the event loop, which may close."""
        with self._lock:
            self._abandoned = self.interrupted = True
        self._settle(None, HandlerTimeoutError("it could not be interrupted"))


class Threads:
    """As many threads as calls at once, started when needed. A thread that was interrupted ends with its call."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._free = 0
        self._closed = False
        self._out: set[Ticket] = set()

    def submit(self, call: Callable[[], Any]) -> Ticket:
        """Run `call` in a thread; await the ticket's `result`."""
        ticket = Ticket(call, asyncio.get_running_loop())
        self._out.add(ticket)
        ticket.result.add_done_callback(lambda _: self._out.discard(ticket))
        with self._lock:
            if self._free > 0:
                self._free -= 1
            else:
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()
        self._calls.put(ticket)
        return ticket

    def _serve(self) -> None:
        while True:
            ticket = self._calls.get()
            if ticket is None:
                return
            try:
                ticket.run()
            except (HandlerTimeoutError, SoftTimeout):
                # The interruption came just after the call had ended.
                return
            if ticket.interrupted:
                return
            with self._lock:
                if self._closed:
                    return
                self._free += 1

    def close(self) -> None:
        """Let idle threads end, and wait for no other."""
        for ticket in list(self._out):
            ticket.abandon()
        with self._lock:
            self._closed = True
            for _ in range(self._free):
                self._calls.put(None)
            self._free = 0
