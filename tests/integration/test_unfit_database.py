"""A database that relay and worker cannot work in yet: they say what is to be mended, are not ready, and then begin."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

import workers
from outbox import migrations
from outbox.health import Findings
from outbox.settings import Settings
from relay import monitoring
from relay.service import Relay
from workers.measures import Measures
from workers.monitoring import Pages


class Service(Protocol):
    """What runs until it is stopped."""

    def ready(self) -> Findings: ...
    def run(self) -> None: ...
    def stop(self) -> None: ...


class Relaying:
    """A relay."""

    def __init__(self, settings: Settings) -> None:
        self._relay = Relay(settings)
        self.ready = monitoring.readiness(self._relay, settings)
        self.run = self._relay.run
        self.stop = self._relay.stop


class Working:
    """A worker with one handler."""

    def __init__(self, settings: Settings) -> None:
        app = workers.App()

        @app.handler("e")
        async def h() -> None: ...

        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        measures = Measures()

        async def make() -> workers.Worker:
            return workers.Worker(app, settings, measures=measures)

        self._worker = self._loop.run_until_complete(make())
        self.ready = Pages(self._worker, measures, settings).ready

    def run(self) -> None:
        self._loop.run_until_complete(self._worker.run())
        self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._worker.request_stop)


@contextlib.contextmanager
def running(service: Service) -> Iterator[None]:
    """In a thread; it must end without an error."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            service.run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    service.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert errors == []


def await_findings(service: Service, fit: Callable[[Findings], bool]) -> Findings:
    deadline = time.monotonic() + 60
    while not fit(found := service.ready()):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


@pytest.fixture
def waits_until_mended(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """See that a service says on its port and in its log what is wrong, and begins when that is mended; its log."""

    def see(service: Service, sentence: str, mend: Callable[[], object]) -> str:
        logged = ""

        def says(found: Findings) -> bool:
            nonlocal logged
            logged += "".join(capsys.readouterr())
            return sentence in str(found.get("worker", found.get("relay"))) and "server.refuses" in logged

        with running(service):
            await_findings(service, says)
            mend()
            await_findings(service, lambda found: set(found.values()) == {None})
        assert sentence in logged
        return logged

    return see


KINDS = pytest.mark.parametrize("kind", [Relaying, Working])


@KINDS
def test_tables_that_are_not_there_yet_are_waited_for(
    kind: Callable[[Settings], Service],
    settings: Settings,
    empty_database_url: str,
    waits_until_mended: Callable[..., str],
) -> None:
    empty = settings.model_copy(update={"database_url": SecretStr(empty_database_url)})
    waits_until_mended(kind(empty), "run `outbox migrate` first", lambda: migrations.apply(empty_database_url))


@KINDS
def test_tables_of_an_older_release_are_waited_for(
    kind: Callable[[Settings], Service], settings: Settings, waits_until_mended: Callable[..., str]
) -> None:
    with psycopg.connect(settings.libpq_url(), autocommit=True) as sql:
        sql.execute("UPDATE outbox.migration SET version = -version WHERE version > 1")
        again = "UPDATE outbox.migration SET version = -version WHERE version < 0"
        waits_until_mended(kind(settings), "of an older release: run `outbox migrate`", lambda: sql.execute(again))


@pytest.fixture
def role(settings: Settings) -> Iterator[str]:
    """A role that has all rights of a relay and of a worker."""
    name = f"both_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(settings.libpq_url(), autocommit=True) as sql:
        sql.execute(f"CREATE ROLE {name} LOGIN".encode())
        sql.execute(migrations.roles_sql(worker=name, relay=name).encode())
        yield name
        sql.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", [name])
        sql.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())


@KINDS
@pytest.mark.parametrize("right", ["USAGE ON SCHEMA outbox", "SELECT ON outbox.migration", "UPDATE ON outbox.handler"])
def test_a_right_that_the_role_lacks_is_named_and_waited_for(
    right: str,
    kind: Callable[[Settings], Service],
    settings: Settings,
    role: str,
    waits_until_mended: Callable[..., str],
) -> None:
    url = settings.libpq_url()
    parts = urlsplit(url)
    limited = urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))
    assert conninfo_to_dict(limited)["user"] == role
    service = kind(settings.model_copy(update={"database_url": SecretStr(limited)}))
    named = f"permission denied for {'schema' if 'SCHEMA' in right else 'table'} {right.rpartition('.')[2].split()[-1]}"
    with psycopg.connect(url, autocommit=True) as sql:
        sql.execute(f"REVOKE {right} FROM {role}".encode())
        if kind is Relaying and "handler" in right:
            sql.execute("INSERT INTO outbox.handler (name, event_name) VALUES ('h', 'e')")
        logged = waits_until_mended(service, named, lambda: sql.execute(f"GRANT {right} TO {role}".encode()))
    assert "outbox migrate --roles-sql" in logged


def test_a_right_that_is_taken_away_later_makes_a_worker_unready_until_it_is_given_back(
    settings: Settings, role: str
) -> None:
    parts = urlsplit(settings.libpq_url())
    limited = urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))
    service = Working(settings.model_copy(update={"database_url": SecretStr(limited)}))
    with psycopg.connect(settings.libpq_url(), autocommit=True) as sql, running(service):
        await_findings(service, lambda found: set(found.values()) == {None})
        sql.execute(f"REVOKE SELECT ON outbox.handler FROM {role}".encode())
        found = await_findings(service, lambda found: found["worker"] is not None)
        assert "permission denied for table handler" in str(found["worker"])
        sql.execute(f"GRANT SELECT ON outbox.handler TO {role}".encode())
        await_findings(service, lambda found: set(found.values()) == {None})


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Any:
    """No answer of a server is kept."""
    monkeypatch.setattr("outbox.health.KEEP", 0.0)
