"""PostgreSQL that goes away and comes back: the relay waits and goes on by itself."""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from console.servers import Postgres
from outbox import migrations
from outbox.settings import Settings


@pytest.fixture(scope="module")
def server(scratch: Path) -> Iterator[Postgres]:
    """A PostgreSQL that these tests may stop, in place of the shared one."""
    wanted = os.environ.get("OUTBOX_TEST_POSTGRES", "18")
    place: dict[str, Any] = {"version": int(wanted)} if wanted.isdigit() else {"bin_dir": Path(wanted)}
    with Postgres(scratch / f"pg-{uuid.uuid4().hex[:8]}", durable=False, **place) as server:
        yield server
    shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
def database_url(server: Postgres) -> str:
    server.start()
    name = f"outbox_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    migrations.apply(server.url(name))
    return server.url(name)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
def test_postgresql_that_is_restarted_is_waited_for(
    server: Postgres,
    settings: Settings,
    box: Any,
    start_relay: Callable[..., Any],
    how: signal.Signals,
) -> None:
    relay = start_relay()
    box.subscribe("send", event="paid")
    before = box.add("paid", 3)
    box.await_seqs(before, "paid")
    server.stop(how)
    relay.await_line("relay.interrupted")
    server.start()
    box.sql = psycopg.connect(settings.libpq_url(), autocommit=True)
    after = box.add("paid", 3)
    assert box.work_until("paid", "send", before + after) == before + after
    assert relay.popen.poll() is None


def test_postgresql_that_is_away_at_the_start_is_waited_for(
    server: Postgres, settings: Settings, box: Any, start_relay: Callable[..., Any]
) -> None:
    server.stop()
    relay = start_relay()
    relay.await_line("relay.interrupted")
    server.start()
    relay.await_line("relay.leading")


def test_a_standby_server_is_refused(
    server: Postgres, settings: Settings, box: Any, start_relay: Callable[..., Any]
) -> None:
    box.sql.close()
    server.stop()
    (server.data / "standby.signal").touch()
    server.start()
    try:
        refused = start_relay()
        assert refused.popen.wait(timeout=60) == 1
        assert "is a standby" in refused.output()
        assert "OUTBOX_RELAY_DATABASE_URL" in refused.output()
    finally:
        (server.data / "standby.signal").unlink()
        server.stop()
        server.start()
