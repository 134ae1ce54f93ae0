"""The folder `.outbox`: what the embedded servers keep from one run to the next, and who uses it now."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

from console.servers import free_port
from outbox.errors import OutboxError, UnusableError

NAME = ".outbox"

LONGEST = 107 - len("/.s.PGSQL.5432")
"""Bytes that the path of a socket's folder may have."""


class RunsAlreadyError(OutboxError):
    """Another `outbox dev` uses this folder."""


class Folder:
    """`.outbox` below a working directory, held by one process at a time inside the `with` block.

    Entering raises `RunsAlreadyError`, or `UnusableError` when the folder cannot be written.

    >>> with Folder(Path.cwd()) as folder:
    ...     folder.postgres
    PosixPath('/home/me/shop/.outbox/postgres')
    """

    def __init__(self, place: Path) -> None:
        self.path = place.absolute() / NAME
        self.postgres = self.path / "postgres"
        self.valkey = self.path / "valkey"
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        try:
            # Both servers trust whoever reaches them. When root starts PostgreSQL, another account must reach its data.
            self.path.mkdir(mode=0o700 if os.geteuid() else 0o711, exist_ok=True)
            (self.path / ".gitignore").write_text("*\n")
            self._lock = (self.path / "lock").open("a+")
        except OSError as error:
            raise UnusableError(f"{self.path} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            pid = self._lock.read().strip()
            self._lock.close()
            raise RunsAlreadyError(
                f"`outbox dev` runs in {self.path.parent} already, as process {pid or '(starting)'}: "
                f"use that one, or end it first{f' (kill {pid})' if pid else ''}"
            ) from None
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    @property
    def has_data(self) -> bool:
        """There is something that `reset` would delete."""
        return self.postgres.exists() or self.valkey.exists()

    def reset(self) -> None:
        """Delete what the servers kept. Addresses stay what they were."""
        for place in (self.postgres, self.valkey):
            shutil.rmtree(place, ignore_errors=True)
            if place.exists():
                raise UnusableError(f"{place} cannot be deleted: remove it by hand")

    def port(self, wanted: int | None = None) -> int:
        """Valkey's port: the one that is wanted, else that of the last run, else a free one; remembered."""
        port = wanted or self.last_port or free_port()
        (self.path / "port").write_text(f"{port}\n")
        return port

    @property
    def last_port(self) -> int | None:
        """Valkey's port in the last run."""
        with suppress(OSError, ValueError):
            return int((self.path / "port").read_text())
        return None

    @property
    def sockets(self) -> Path:
        """The folder of PostgreSQL's socket: below this one, or, if its path is too long, a short one that follows
        from it."""
        near = self.path / "socket"
        if len(os.fsencode(near)) <= LONGEST:
            return near
        name = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"outbox-{os.geteuid()}-{name}"

    def prepare_sockets(self) -> None:
        """Make the folder of the socket. Raises `UnusableError` if it is somebody else's."""
        sockets = self.sockets
        if sockets.is_relative_to(self.path):
            return
        sockets.mkdir(mode=0o700 if os.geteuid() else 0o711, exist_ok=True)
        if os.geteuid() and sockets.stat().st_uid != os.geteuid():
            raise UnusableError(f"{sockets} belongs to somebody else: set TMPDIR to a folder of your own")


def refuse_taken(port: int) -> None:
    """Raise `UnusableError` if something listens on this loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UnusableError(
                f"port {port}, where Valkey is to listen, cannot be had ({error.strerror}): end the program that uses "
                f"it, or choose another port with --port"
            ) from None
