"""A proxy before a server, for faults of the network; a mark by which a program's processes are found."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

Target = int | Path
"""A loopback port or a unix socket."""


class Proxy:
    """Stands before a server on a loopback port of its own and does to connections what networks do."""

    def __init__(self, target: Target) -> None:
        self.target = target
        """Where connections that are yet to come go."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._muted: set[socket.socket] = set()
        self._flowing = threading.Event()
        self._flowing.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = self._reach()
                except OSError:
                    client.close()
                    continue
                self._pairs.append((client, server))
                threading.Thread(target=self._carry, args=(client, server), daemon=True).start()
                threading.Thread(target=self._carry, args=(server, client), daemon=True).start()

    def _reach(self) -> socket.socket:
        if isinstance(self.target, int):
            return socket.create_connection(("127.0.0.1", self.target))
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(self.target))
        return server

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                if target not in self._muted:
                    target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def hold(self) -> None:
        """Let nothing through, and end nothing: both sides still believe in each other."""
        self._flowing.clear()

    def release(self) -> None:
        """Let everything through again, also what was held."""
        self._flowing.set()

    def mute(self) -> None:
        """Keep all further replies to the clients that are connected now."""
        self._muted |= {client for client, _ in self._pairs}

    def deafen(self) -> None:
        """Keep all further requests of the clients that are connected now."""
        self._muted |= {server for _, server in self._pairs}

    def cut(self) -> None:
        """End all connections."""
        while self._pairs:
            for end in self._pairs.pop():
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Accept no more, and end what there is."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.release()
        self.cut()


def place(url: str) -> tuple[Target, str]:
    """Where the server of a PostgreSQL URL listens, and the name of the database."""
    parts = urlsplit(url)
    database = parts.path.removeprefix("/")
    if parts.hostname:
        return parts.port or 5432, database
    query = parse_qs(parts.query)
    return Path(query["host"][0]) / f".s.PGSQL.{query.get('port', ['5432'])[0]}", database


@pytest.fixture
def open_proxy() -> Iterator[Callable[[Target], Proxy]]:
    """Stand before a server: `open_proxy(port)` or `open_proxy(path of a unix socket)`."""
    opened: list[Proxy] = []

    def make(target: Target) -> Proxy:
        opened.append(Proxy(target))
        return opened[-1]

    yield make
    for proxy in opened:
        proxy.close()


@pytest.fixture
def database_proxy(database_url: str, open_proxy: Callable[[Target], Proxy]) -> tuple[Proxy, str]:
    """A proxy before PostgreSQL, and this test's database through it."""
    target, database = place(database_url)
    proxy = open_proxy(target)
    user = urlsplit(database_url).netloc.rpartition("@")[0]
    return proxy, f"postgresql://{user}@127.0.0.1:{proxy.port}/{database}"


SETTLE = 15.0
"""Seconds within which processes that were told to end are gone."""


class Mark:
    """A variable in the environment of a program, by which all of its processes are found."""

    def __init__(self) -> None:
        self.variables = {"PROCESS_OF_TEST": uuid.uuid4().hex}

    def running(self) -> list[str]:
        """Command lines of the processes that are still there."""
        found = []
        mark = "".join(f"{name}={value}" for name, value in self.variables.items()).encode()
        for place in Path("/proc").iterdir():
            try:
                if mark in (place / "environ").read_bytes():
                    found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found

    def assert_gone(self) -> None:
        """Wait until there is none."""
        deadline = time.monotonic() + SETTLE
        while left := self.running():
            assert time.monotonic() < deadline, left
            time.sleep(0.05)


@pytest.fixture
def mark() -> Mark:
    """Put its `variables` into a program's environment."""
    return Mark()
