"""A proxy before a server, for faults of the network."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

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
        self.delay = 0.0
        """Seconds that everything takes longer, one way."""
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
                pair = (client, server)
                self._pairs.append(pair)
                over = threading.Barrier(2, action=partial(self._close, pair))
                threading.Thread(target=self._carry, args=(client, server, over), daemon=True).start()
                threading.Thread(target=self._carry, args=(server, client, over), daemon=True).start()

    def _close(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """Both directions have ended."""
        with contextlib.suppress(ValueError):
            self._pairs.remove(pair)
        self._muted -= set(pair)
        for end in pair:
            end.close()

    def _reach(self) -> socket.socket:
        if isinstance(self.target, int):
            return socket.create_connection(("127.0.0.1", self.target))
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(self.target))
        return server

    def _carry(self, source: socket.socket, target: socket.socket, over: threading.Barrier) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                if self.delay:
                    time.sleep(self.delay)
                if target not in self._muted:
                    target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        over.wait()

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

    def heal(self) -> None:
        """Let everything through again, and end the connections that lost something."""
        self.delay = 0.0
        self.release()
        if self._muted:
            self.cut()
            self._muted = set()

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
