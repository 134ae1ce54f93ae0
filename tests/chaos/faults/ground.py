"""What all faults stand on: how a kind is registered and caused, and what several do."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psycopg
import redis

from console.servers import Server
from tests.chaos.cluster import Cluster, let_go_on, processes
from tests.chaos.schedule import RELAYS, Fault

Undo = Callable[[], None]
Do = Callable[[Cluster, Fault], Undo | None]

FAULTS: dict[str, Do] = {}
"""What each kind of fault does, by its name."""


class NotPossible(Exception):
    """This fault cannot be caused here and now; the message says why."""


def kind(name: str) -> Callable[[Do], Do]:
    """Register what a kind of fault does."""

    def register(do: Do) -> Do:
        FAULTS[name] = do
        return do

    return register


def cause(cluster: Cluster, fault: Fault) -> Undo | None:
    """Let a fault happen. Raises `NotPossible`; that a server is away already is no reason to fail."""
    if fault.kind in cluster.skipped:
        raise NotPossible(cluster.skipped[fault.kind])
    try:
        return FAULTS[fault.kind](cluster, fault)
    except (psycopg.OperationalError, redis.RedisError) as error:
        raise NotPossible(f"{type(error).__name__}: the server is away") from None


def freeze(server: Server) -> Undo:
    """Let a server and all of its processes stand still."""
    frozen = processes(server)
    for pid in frozen:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    return lambda: let_go_on(server)


def fill(place: Path) -> Undo:
    """Fill a disk to its last block."""
    ballast = place / "ballast"
    with ballast.open("ab") as file:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)
    return lambda: ballast.unlink(missing_ok=True)


def start_relays(cluster: Cluster) -> None:
    """Start those that do not run."""
    for name in RELAYS:
        cluster.programs[name].start()
