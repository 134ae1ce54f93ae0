"""PostgreSQL is restarted at once, twice, while relay and workers are busy: nothing is lost, effects are there once."""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from console.servers import Postgres, Redis
from outbox import migrations
from outbox.settings import Settings

DONE = "SELECT count(*) FROM outbox.delivery WHERE state = 'done'"


@pytest.fixture
def server(scratch: Path) -> Iterator[Postgres]:
    wanted = os.environ.get("OUTBOX_TEST_POSTGRES", "18")
    place: dict[str, Any] = {"version": int(wanted)} if wanted.isdigit() else {"bin_dir": Path(wanted)}
    with Postgres(scratch / f"pg-{uuid.uuid4().hex[:8]}", durable=False, **place) as server:
        yield server
    shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
def settings(server: Postgres, redis_server: Redis) -> Settings:
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE outbox")
    migrations.apply(server.url("outbox"))
    return Settings(database_url=server.url("outbox"), redis_url=redis_server.url, _env_file=None)


@pytest.mark.slow
def test_what_was_under_way_when_postgresql_was_restarted_at_once_is_done_with_effects_once(
    working: Any, server: Postgres
) -> None:
    cast = working
    cast.relay()
    for _ in range(2):
        cast.worker()
    cast.wait_for(lambda: cast.one("SELECT count(*) FROM outbox.handler") == 4, "the handlers")
    cast.await_attached()
    ordered: list[str] = []
    for _ in range(2):
        ordered += cast.order(300)
        done = cast.one(DONE)
        cast.wait_for(lambda done=done: cast.one(DONE) > done + 100, "some to be done")
        assert cast.one(DONE) < 4 * len(ordered), "nothing was under way"
        cast.sql.close()
        server.stop(signal.SIGQUIT)
        server.start()
        cast.sql = psycopg.connect(cast.settings.libpq_url(), autocommit=True)
    ordered += cast.order(10)
    cast.check_effects(ordered)
