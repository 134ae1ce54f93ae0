"""The servers that this run tests against, as the plugin's fixtures give them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg
import pytest
from forking import Programs
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import outbox

Db = psycopg.Connection[Any]


@pytest.fixture
def db(outbox_database_url: str) -> Any:
    with psycopg.connect(outbox_database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE effect (handler text, n int)")
        yield connection


@pytest.fixture
def add(outbox_database_url: str) -> Callable[..., None]:
    """Add events, each in a transaction of its own: `add("ordered", n=1)`."""
    engine = create_engine(outbox_database_url.replace("postgresql://", "postgresql+psycopg://", 1))

    def write(name: str, **payload: Any) -> None:
        with Session(engine) as session:
            outbox.add(session, name, **payload)
            session.commit()
        engine.dispose()

    return write


@pytest.fixture
def run_pytest(programs: Programs, pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """Run pytest in a process of its own, on the files of the pytester: `run_pytest("-k", "servers")`."""

    def run(*arguments: str) -> pytest.RunResult:
        began = time.monotonic()
        done = programs.run(
            ["-m", "pytest", "-p", "no:cacheprovider", "--basetemp", str(pytester.path / "temporary"), *arguments],
            cwd=pytester.path,
            timeout=120,
        )
        duration = time.monotonic() - began
        print(done.stdout, done.stderr)  # noqa: T201
        return pytest.RunResult(done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), duration)

    return run


@pytest.fixture(params=["async", "sync"])
def finish(request: pytest.FixtureRequest) -> Any:
    """Both ways to call a helper: `finish(run, run_sync)(app, …)`."""

    def choose(asynchronous: Callable[..., Coroutine[Any, Any, Any]], synchronous: Callable[..., Any]) -> Any:
        if request.param == "sync":
            return synchronous
        return lambda *args, **options: asyncio.run(asynchronous(*args, **options))

    return choose
