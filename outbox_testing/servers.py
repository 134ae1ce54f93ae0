"""Real servers for a suite of tests, and a fresh database for each test."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import psycopg

from console.servers import Postgres, Redis
from outbox import migrations
from outbox.schema import SCHEMA

if TYPE_CHECKING:
    from outbox.settings import Settings

MEMORY = Path("/dev/shm")
ROOM = 2 << 30
"""Bytes that servers' data must find free in memory."""

SCRATCH = "obx-"
"""What names of folders with servers' data begin with; the process that made it follows."""


def place_for_data() -> Path:
    """Memory, where programs may be run from it; else the folder for temporary files.

    Every test's database is some hundred new files where another one's were just deleted, which takes a file system on
    a disk several times as long as it takes PostgreSQL.
    """
    try:
        facts = os.statvfs(MEMORY)
    except OSError:
        return Path(tempfile.gettempdir())
    usable = os.access(MEMORY, os.W_OK | os.X_OK) and not facts.f_flag & os.ST_NOEXEC
    return MEMORY if usable and facts.f_bavail * facts.f_frsize >= ROOM else Path(tempfile.gettempdir())


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder with a short path, for unix sockets, that servers' unprivileged users may enter; gone afterwards.

    When this process is killed, the next one that makes such a folder removes it.
    """
    place = place_for_data()
    _remove_left(place)
    folder = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-", dir=place))
    folder.chmod(0o755)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_left(place: Path) -> None:
    """Remove the folders of processes that are gone.

    The lock tells of those that a process id does not: the owner may be in another container, or a copy of it live on.
    """
    for folder in place.glob(f"{SCRATCH}*-*"):
        pid = folder.name.removeprefix(SCRATCH).partition("-")[0]
        if not pid.isdigit() or _exists(int(pid)):
            continue
        with suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        # Somebody else's.
        return True
    return True


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL server, as the URL of its maintenance database. It ends with this process, however that ends."""
    with (
        scratch_folder() as folder,
        Postgres(folder / "pg", durable=False, options={"max_connections": "200"}) as server,
    ):
        yield server.url()


@contextmanager
def redis() -> Iterator[str]:
    """A Valkey server, as its URL. It ends with this process, however that ends."""
    with scratch_folder() as folder, Redis(folder / "redis") as server:
        yield server.url


def other_database(url: str, name: str) -> str:
    """The URL of another database on the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def copying_strategy(admin: psycopg.Connection) -> str:
    """How this server copies a database in the least time: as files, in half the processor time of page by page
    through its log. But files it first brings to the disk, unless it never does."""
    return "file_copy" if admin.execute("SHOW fsync").fetchone() == ("off",) else "wal_log"


@contextmanager
def database(url: str, template: str | None = None) -> Iterator[str]:
    """A database of its own on the server that `url` leads to, as its URL; dropped afterwards."""
    name = f"outbox_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(
            f"CREATE DATABASE {name} TEMPLATE {template or 'template1'} STRATEGY {copying_strategy(admin)}".encode()
        )
    try:
        yield other_database(url, name)
    finally:
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@contextmanager
def template(url: str, prepare: Callable[[str], None] = lambda url: None) -> Iterator[str]:
    """A database to make others of, with the outbox's tables and what `prepare` does, by its name."""
    with database(url) as made:
        migrations.apply(made, SCHEMA)
        prepare(made)
        name = urlsplit(made).path.removeprefix("/")
        with psycopg.connect(url, autocommit=True) as admin:
            # Nobody may be connected to what is copied, and a pool keeps connections.
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        yield name


@contextmanager
def settings(database_url: str, redis_url: str) -> Iterator[Settings]:
    """Settings with a Redis prefix of its own, whose keys are deleted afterwards. The environment's addresses have no
    say: a test must not reach somebody's real servers."""
    from outbox.redis import connect
    from outbox.settings import Settings

    made = Settings(
        database_url=database_url,
        relay_database_url=None,
        redis_url=redis_url,
        schema_name=SCHEMA,
        prefix=f"test-{uuid.uuid4().hex[:12]}",
        _env_file=None,
    )
    try:
        yield made
    finally:
        with connect(redis_url, timeout=5) as client:
            for key in client.scan_iter(match=f"{made.prefix}:*", count=1000):
                client.unlink(key)
