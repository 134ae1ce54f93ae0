"""Falling asleep without losing a wake-up.

Writers notify only while a flag, the sequence `asleep`, says so. One that read "awake" just before it was set will
commit without a NOTIFY: the relay polls until every transaction that could have done so has ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections import Counter

import psycopg
from psycopg import sql

from outbox.names import channel
from relay import pacing

NOTIFIED = b"n"

AWAKE = 1
"""A moment long past: the flag's value while the relay polls."""


class Doorbell:
    """LISTEN on the leader's connection, the flag, and a way for other threads and signal handlers to ring."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self.wakeups = Counter(notify=0, timer=0, internal=0)
        """What ended the leader's rests: a writer's NOTIFY, the time, or somebody in this process."""

    def ring(self) -> None:
        """Wake whoever waits. Safe in a signal handler and from any thread."""
        self._write(b"!")

    def notified(self) -> None:
        """Wake whoever waits: a NOTIFY came with the answer to something else."""
        self._write(NOTIFIED)

    def _write(self, sign: bytes) -> None:
        # Full: it rings already. Closed: nobody waits.
        with contextlib.suppress(OSError):
            os.write(self._writer, sign)

    def wait(self, seconds: float, connection: psycopg.Connection | None = None) -> bool:
        """Wait for a ring, or for the server to send something. True if either came within `seconds`."""
        sources = [self._reader] if connection is None else [self._reader, connection.fileno()]
        ready, _, _ = select.select(sources, [], [], max(0.0, seconds))
        source = "internal" if ready else "timer"
        if self._reader in ready:
            with contextlib.suppress(BlockingIOError):
                source = "notify" if NOTIFIED in os.read(self._reader, 4096) else source
        if connection is not None and connection.fileno() in ready:
            connection.pgconn.consume_input()
            while connection.pgconn.notifies():
                source = "notify"
        if connection is not None:
            self.wakeups[source] += 1
        return bool(ready)

    def close(self) -> None:
        """Nobody waits any more; a late ring is nothing."""
        ends = self._reader, self._writer
        self._reader = self._writer = -1
        for end in ends:
            os.close(end)


class Sleep:
    """Whether writers are asked to notify, and which of them may not have heard it yet."""

    def __init__(self, connection: psycopg.Connection, schema: str) -> None:
        self._connection = connection
        self._schema = schema
        self._deaf: set[str] = set()
        self._since = 0.0
        self.asleep = False
        connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel(schema))))
        self.wake()

    def fall_asleep(self) -> None:
        """Ask writers to notify from now on; also renews that. To be followed by polls until none may be deaf."""
        self._set(f"floor(extract(epoch FROM clock_timestamp()))::bigint + {int(pacing.ASLEEP_FOR)}")
        if not self.asleep:
            self.asleep = True
            self._since = time.monotonic()
            self._deaf = self._writers()

    def wake(self) -> None:
        """Tell writers not to notify."""
        self._set(str(AWAKE))
        self.asleep = False
        self._deaf = set()

    def next_poll(self) -> float:
        """Seconds until the next poll while asleep."""
        if not self._deaf:
            return pacing.SAFETY_POLL
        return pacing.awaited_poll(time.monotonic() - self._since)

    def forget_ended(self) -> None:
        """See which of the transactions that may not have heard are gone. To be followed by one more poll."""
        if self._deaf:
            self._deaf &= self._writers()

    def _set(self, value: str) -> None:
        self._connection.execute(f"SELECT setval('{self._schema}.asleep', {value})".encode())

    def _writers(self) -> set[str]:
        rows = self._connection.execute(
            "SELECT virtualtransaction FROM pg_locks WHERE relation = %s::regclass AND mode = 'RowExclusiveLock'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            [f"{self._schema}.event"],
        ).fetchall()
        return {row[0] for row in rows}
