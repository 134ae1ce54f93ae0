"""Runs that must not be repeated: a delivery is dead, with its dead letter, before the run, and done only after it.

So nothing ever runs it again by itself: whoever meets the event, its entry or its row, finds an outcome. A crash leaves
the dead letter, which says that the run was interrupted. While a run is under way, its worker puts the moment at which
the letter died off, into the future: nobody finds or replays it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from outbox.failpoints import reach
from workers.binding import Binding
from workers.errors import HandlerError, SupersededError
from workers.job import Job

if TYPE_CHECKING:
    from workers.database import Database


class Mark(str):
    """The token of a run that began. It stands in the error of its dead letter; its job has it in place of a lease."""

    __slots__ = ()

    @property
    def beginning(self) -> str:
        """What the dead letter's error begins with, of this run only."""
        return f"interrupted: run {self} "

    @property
    def error(self) -> str:
        """All of it. Whether the run still goes on only its process can tell."""
        return (
            f"{self.beginning}began in process {os.getpid()} of {socket.gethostname()} and has not ended: its worker "
            "died or was stopped, or is still at it; what it did is not known"
        )


class Once:
    """Runs the deliveries of an `at_most_once` handler: each is marked, then run.

    `timeout` is the handler's; `lease` is for how many seconds nobody finds the dead letter, unless it is renewed.
    """

    def __init__(
        self, run: Callable[[Job], Awaitable[bool]], database: Database, timeout: float, *, lease: float
    ) -> None:
        self._run = run
        self._database = database
        self._timeout = timeout
        self._lease = lease

    async def run(self, job: Job) -> bool:
        """One run. Raises `SupersededError` if there is an outcome already; then the function is not called."""
        mark = Mark(uuid4())
        beginning = asyncio.create_task(self._database.fetch("begin_once", _facts(job, mark, self._lease)))
        try:
            while not beginning.done():
                # A timeout is meant for the handler: PostgreSQL may be away for longer.
                await asyncio.wait({beginning}, timeout=self._timeout / 2)
                job.lane.restart_clock(job)
        finally:
            beginning.cancel()
        if not beginning.result():
            raise SupersededError("another worker recorded an outcome first")
        reach("worker.marked")
        job.lease = mark
        return await self._run(job)


def _facts(job: Job, mark: Mark, lease: float) -> dict[str, Any]:
    return {
        "id": job.event_id, "handler": job.lane.name, "at": job.at, "lease": job.lease, "error": mark.error,
        "name": job.name, "payload": job.payload or "null", "term": lease,
    }  # fmt: skip


def check(name: str, binding: Binding, *, batch: int | None, repeats: bool) -> None:
    """Refuse, with advice, what makes no sense with `at_most_once=True`; `repeats` says that something was said about
    repeating. Raises `HandlerError`."""
    if binding.transactional:
        raise HandlerError(
            f"handler {name!r} asks for a session and has at_most_once=True: what it writes through its session happens"
            " once anyway. Leave at_most_once out, or write through a connection of your own"
        )
    if batch is not None:
        raise HandlerError(f"handler {name!r}: at_most_once=True takes one event at a time; leave batch=… out")
    if repeats:
        raise HandlerError(
            f"handler {name!r}: with at_most_once=True nothing is tried again; leave max_attempts=…, backoff=… and "
            "retry_on=… out"
        )
