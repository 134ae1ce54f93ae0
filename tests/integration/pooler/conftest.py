"""A transaction pooler before PostgreSQL.

By default one of our own, which does to clients the least that transaction poolers do. OUTBOX_TEST_PGBOUNCER=<path of
the program> takes a real PgBouncer instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pwd
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from outbox.settings import Settings

SIZE = 3
"""Sessions that all clients share."""

SSL, GSS, CANCEL = 80877103, 80877104, 80877102
"""Requests that come in the place of a start-up message."""


async def message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The next message of PostgreSQL's protocol: its type, and all of it."""
    head = await reader.readexactly(5)
    return head[:1], head + await reader.readexactly(int.from_bytes(head[1:], "big") - 4)


def framed(kind: bytes, content: bytes) -> bytes:
    return kind + (len(content) + 4).to_bytes(4, "big") + content


class Session:
    """A connection to the server. libpq opened it and knows the way; what is said is carried past it."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self.client: asyncio.StreamWriter | None = None
        self.alive = True
        self._owed = 0
        self._midway = False

    async def open(self) -> None:
        own = socket.socket(fileno=os.dup(self.connection.fileno()))
        self.reader, self._writer = await asyncio.open_connection(sock=own)

    async def ask(self, kind: bytes, data: bytes) -> None:
        self._owed += kind in (b"Q", b"S", b"F")
        self._midway = kind not in (b"Q", b"S", b"F")
        self._writer.write(data)
        await self._writer.drain()

    def answer(self, kind: bytes, data: bytes) -> bool:
        """Pass a message on to the client. True when that was the end of a transaction."""
        if self.client is not None:
            self.client.write(data)
        self._owed -= kind == b"Z"
        return kind == b"Z" and data[5:] == b"I" and not self._owed and not self._midway

    def close(self) -> None:
        self.alive = False
        self.connection.close()
        self._writer.close()


class Pooler:
    """After each transaction a session goes to the back of the queue, just as it is: nothing is reset, no name of a
    prepared statement is translated. Clients have process numbers of the pooler's own, by which they may cancel.

    With `keep` a client has its session until it leaves, and is told of no notification.
    """

    def __init__(self, url: str, size: int = SIZE, *, keep: bool = False) -> None:
        self.swallowed = 0
        self._server = url
        self._size = size
        self._keep = keep
        self._clients: dict[bytes, asyncio.StreamWriter] = {}
        self._numbers = itertools.count(1 << 30)
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="pooler", daemon=True)
        self._thread.start()
        assert self._ready.wait(30)
        parts = urlsplit(url)
        self.url = f"postgresql://{parts.netloc.rpartition('@')[0]}@127.0.0.1:{self._port}{parts.path}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._idle: asyncio.Queue[Session] = asyncio.Queue()
        self._sessions: set[Session] = set()
        for _ in range(self._size):
            await self._open()
        server = await asyncio.start_server(lambda *client: self._begin(self._serve(*client)), "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for session in self._sessions:
            session.close()

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        connection = await asyncio.to_thread(psycopg.connect, self._server, sslmode="disable", autocommit=True)
        session = Session(connection)
        await session.open()
        self._sessions.add(session)
        self._idle.put_nowait(session)
        self._begin(self._answer(session))

    async def _answer(self, session: Session) -> None:
        """Carry the server's answers to whom they are for."""
        try:
            while True:
                kind, data = await message(session.reader)
                if self._keep and kind == b"A":
                    self.swallowed += 1
                elif session.answer(kind, data) and not self._keep:
                    session.client = None
                    self._idle.put_nowait(session)
        except (asyncio.IncompleteReadError, ConnectionError):
            if session.client is not None:
                fields = (b"SFATAL", b"VFATAL", b"C08P01", b"Mserver conn crashed?", b"")
                session.client.write(framed(b"E", b"".join(field + b"\0" for field in fields)))
                session.client.close()
            session.close()
            self._sessions.discard(session)
            await self._open()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry a client's requests to a session."""
        session: Session | None = None
        key = b""
        try:
            if not (key := await self._welcome(reader, writer)):
                return
            while True:
                kind, data = await message(reader)
                if kind == b"X":
                    return
                if session is None or session.client is not writer:
                    session = await self._idle.get()
                    while not session.alive:
                        session = await self._idle.get()
                    session.client = writer
                await session.ask(kind, data)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._clients.pop(key, None)
            if session is not None and session.client is writer:
                # Within a transaction: nobody can take it up.
                session.client = None
                session.close()
            writer.close()

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """Let a client in, or do what it asks instead. Its key; empty when that was all."""
        while True:
            size = int.from_bytes(await reader.readexactly(4), "big")
            start = await reader.readexactly(size - 4)
            code = int.from_bytes(start[:4], "big")
            if code == CANCEL:
                self._cancel(start[4:])
                return b""
            if code not in (SSL, GSS):
                break
            writer.write(b"N")
        key = next(self._numbers).to_bytes(4, "big") + os.urandom(4)
        self._clients[key] = writer
        writer.write(framed(b"R", bytes(4)))
        [known, *_] = self._sessions
        for name in ("server_version", "client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings"):
            value = known.connection.info.parameter_status(name) or ""
            writer.write(framed(b"S", f"{name}\0{value}\0".encode()))
        writer.write(framed(b"K", key) + framed(b"Z", b"I"))
        return key

    def _cancel(self, key: bytes) -> None:
        for session in self._sessions:
            if session.client is not None and session.client is self._clients.get(key):
                # In the loop's thread: the session must not become another client's before it is done.
                session.connection.pgconn.get_cancel().cancel()


class PgBouncer:
    """The real one, in transaction mode, with the sessions taken in turns."""

    def __init__(self, program: str, folder: Path, url: str) -> None:
        given = conninfo_to_dict(url)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = " ".join(f"{name}={given[name]}" for name in ("host", "port", "user", "password") if given.get(name))
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": "transaction",
            "default_pool_size": SIZE,
            "server_round_robin": 1,
        }
        folder.mkdir()
        config = folder / "pgbouncer.ini"
        lines = ["[databases]", f"* = {server}", "[pgbouncer]", *(f"{name} = {settings[name]}" for name in settings)]
        config.write_text("\n".join([*lines, ""]))
        config.chmod(0o644)
        # It refuses to be root.
        user = ["-u", pwd.getpwnam("nobody").pw_name] if os.getuid() == 0 else []
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen([program, "-q", *user, str(config)], stdout=log, stderr=log)
        self.url = f"postgresql://{given['user']}@127.0.0.1:{port}/{given['dbname']}"
        clients: list[psycopg.Connection[Any]] = []
        deadline = time.monotonic() + 30
        with contextlib.ExitStack() as stack:
            # It opens a session only when none is free, and all are to take part.
            while len(clients) < SIZE:
                try:
                    clients.append(stack.enter_context(psycopg.connect(self.url)))
                except psycopg.OperationalError:
                    assert time.monotonic() < deadline, (folder / "log").read_text()
                    time.sleep(0.01)
                else:
                    clients[-1].execute("SELECT")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def open_pooler(scratch: Path) -> Iterator[Callable[[str], str]]:
    """Stand a transaction pooler before a database: `open_pooler(url)`, the URL through it."""
    opened: list[Pooler | PgBouncer] = []

    def start(url: str) -> str:
        if program := os.environ.get("OUTBOX_TEST_PGBOUNCER"):
            opened.append(PgBouncer(program, scratch / f"pgbouncer-{time.monotonic_ns()}", url))
        else:
            opened.append(Pooler(url))
        return opened[-1].url

    yield start
    for pooler in opened:
        pooler.close()


@pytest.fixture
def deaf(database_url: str) -> Iterator[Pooler]:
    """A pooler that leaves each client its session, and tells of no notification."""
    with contextlib.closing(Pooler(database_url, 6, keep=True)) as pooler:
        yield pooler


@pytest.fixture
def pooled(settings: Settings, open_pooler: Callable[[str], str]) -> Settings:
    """Settings for this test's database through a pooler; the relay's go past it."""
    direct = settings.libpq_url()
    return settings.model_copy(
        update={"database_url": SecretStr(open_pooler(direct)), "relay_database_url": SecretStr(direct)}
    )
