"""Telling a run that it has used up its `soft_timeout`: `SoftTimeout` is raised inside it, once.

A coroutine gets it where it waits, a thread at its next step in Python, a child process there too and in the middle of
a system call. `SoftTimeout` is an `asyncio.CancelledError`, so whatever cleans up after a cancellation does.
"""

from __future__ import annotations

import asyncio
import ctypes
import signal
import threading
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from workers.errors import SoftTimeout

Call = Callable[..., Any]


def in_coroutine(function: Call, seconds: float) -> Call:
    """`function`, an async one, told after `seconds`."""

    def call(**arguments: Any) -> Any:
        return _drive(function(**arguments), seconds)

    return call


@types.coroutine
def _drive(coroutine: Coroutine[Any, Any, Any], seconds: float) -> Generator[Any, Any, Any]:
    """Run `coroutine` in the current task. The cancellation that wakes it up is exchanged for `SoftTimeout`."""
    task = asyncio.current_task()
    assert task is not None
    due = False

    def ring() -> None:
        nonlocal due
        due = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, ring)
    thrown: BaseException | None = None
    try:
        while True:
            try:
                waits_for = coroutine.send(None) if thrown is None else coroutine.throw(thrown)
            except StopIteration as stop:
                return stop.value
            thrown = None
            try:
                yield waits_for
            except asyncio.CancelledError as error:
                thrown = error
                if due:
                    due = False
                    # Unless it is cancelled for another reason as well, which then goes first.
                    if task.uncancel() == 0:
                        thrown = SoftTimeout()
            except BaseException as error:
                thrown = error
    finally:
        timer.cancel()
        coroutine.close()
        if due:
            # It ended before it could be told: nobody else must be cancelled for it.
            task.uncancel()


def in_thread(function: Call, seconds: float) -> Call:
    """`function`, called in threads beside the running loop, told after `seconds`."""
    loop = asyncio.get_running_loop()

    def call(**arguments: Any) -> Any:
        alarm = _Alarm(loop, seconds)
        try:
            return function(**arguments)
        finally:
            alarm.off()

    return call


class _Alarm:
    """Rings once in the thread that made it, unless it is off."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._off = self._rang = False
        self._timer: asyncio.TimerHandle | None = None
        loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        if not self._off:
            self._timer = self._loop.call_later(self._seconds, self._ring)

    def _ring(self) -> None:
        with self._lock:
            if not self._off:
                self._rang = True
                # An exception class: what is raised in another thread is made there.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), ctypes.py_object(SoftTimeout))

    def off(self) -> None:
        with self._lock:
            self._off = True
            if self._rang:
                # What has not arrived yet must not arrive in what this thread does next.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), None)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._unset)

    def _unset(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def in_main_thread(function: Call, seconds: float) -> Call:
    """`function`, called in the main thread of a process that leaves SIGALRM to us, told after `seconds`."""

    def ring(number: int, frame: object) -> None:
        raise SoftTimeout()

    signal.signal(signal.SIGALRM, ring)

    def call(**arguments: Any) -> Any:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            return function(**arguments)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    return call
