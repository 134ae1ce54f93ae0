"""pytest fixtures: real PostgreSQL and Valkey for a suite, a fresh database and settings for each test.

pytest finds this module by itself where the package is installed. Nothing is loaded or started before a test asks for
one of the fixtures. Under pytest-xdist each of its processes has servers of its own.

| fixture | scope | gives |
|---|---|---|
| `outbox_postgres_url` | session | a PostgreSQL server, by the URL of its maintenance database |
| `outbox_redis_url` | session | a Valkey server |
| `outbox_prepare` | session | override it: what else each test's database begins with |
| `outbox_database_url` | function | a migrated database of the test's own, cloned from a template |
| `outbox_settings` | function | `Settings` for that database, and a Redis prefix of the test's own |

`OUTBOX_TEST_DATABASE_URL` (of a role that may create databases) and `OUTBOX_TEST_REDIS_URL` name servers to use
instead.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from outbox.settings import Settings


@pytest.fixture(scope="session")
def outbox_postgres_url() -> Iterator[str]:
    """The maintenance database of a PostgreSQL server for this process's tests, as a libpq URL."""
    with ExitStack() as running:
        given = os.environ.get("OUTBOX_TEST_DATABASE_URL")
        with _installed("outbox_postgres_url"):
            url = given or running.enter_context(_servers().postgres())
        yield url


@pytest.fixture(scope="session")
def outbox_redis_url() -> Iterator[str]:
    """A Valkey server for this process's tests, as its URL."""
    with ExitStack() as running:
        given = os.environ.get("OUTBOX_TEST_REDIS_URL")
        with _installed("outbox_redis_url"):
            url = given or running.enter_context(_servers().redis())
        yield url


@pytest.fixture(scope="session")
def outbox_prepare() -> Callable[[str], None]:
    """What each test's database begins with beside the outbox. Override it in your `conftest.py`: the function is
    called once in each process, with the template's URL.

    >>> @pytest.fixture(scope="session")
    ... def outbox_prepare():
    ...     return lambda url: alembic.command.upgrade(configuration(url), "head")
    """
    return lambda url: None


@pytest.fixture(scope="session")
def _outbox_template(outbox_postgres_url: str, outbox_prepare: Callable[[str], None]) -> Iterator[str]:
    """A prepared database that nobody is connected to, by its name."""
    with _servers().template(outbox_postgres_url, outbox_prepare) as name:
        yield name


@pytest.fixture
def outbox_database_url(outbox_postgres_url: str, _outbox_template: str) -> Iterator[str]:
    """A migrated database of this test's own, as a libpq URL; dropped after the test."""
    with _servers().database(outbox_postgres_url, _outbox_template) as url:
        yield url


@pytest.fixture
def outbox_settings(outbox_database_url: str, outbox_redis_url: str) -> Iterator[Settings]:
    """`Settings` for this test's database, and a Redis prefix of its own, whose keys are deleted after the test."""
    with ExitStack() as tidying:
        with _installed("outbox_settings"):
            settings = tidying.enter_context(_servers().settings(outbox_database_url, outbox_redis_url))
        yield settings


def _servers() -> ModuleType:
    """What starts servers and needs more than pytest."""
    return importlib.import_module("outbox_testing.servers")


@contextmanager
def _installed(fixture: str) -> Iterator[None]:
    """A sentence instead of a traceback where a part is not installed."""
    from outbox.errors import ConfigurationError, UnusableError

    try:
        yield
    except ModuleNotFoundError as error:
        advice = f"{error.name} is not installed: pip install 'transactional-outbox[daemon,embedded]'"
    except (ConfigurationError, UnusableError) as error:
        advice = str(error)
    else:
        return
    pytest.fail(f"the fixture {fixture} cannot be had: {advice}", pytrace=False)
