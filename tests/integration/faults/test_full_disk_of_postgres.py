"""A PostgreSQL whose disk is full for real: what cannot be stored is tried until it can, and effects are there once.

It takes no right that an ordinary user lacks: some tables lead to a device that is always full.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from console.servers import Postgres, Redis
from outbox import migrations
from outbox.settings import Settings


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
def test_what_cannot_be_stored_is_tried_until_it_can_and_effects_are_there_once(working: Any, server: Postgres) -> None:
    cast = working
    # What the relay says of its streams, and what workers say of deliveries: tables that are empty as yet.
    rows = cast.sql.execute(
        "SELECT pg_relation_filepath(c.oid) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE n.nspname = 'outbox' AND c.relkind = 'r' AND (c.relname = 'stream' OR c.relname LIKE 'delivery%')"
    ).fetchall()
    files = [server.data / row[0] for row in rows]
    assert len(files) > 3
    cast.sql.close()
    server.stop()
    for file in files:
        assert file.stat().st_size == 0
        file.rename(file.with_suffix(".free"))
        file.symlink_to("/dev/full")
    server.start()
    cast.sql = psycopg.connect(cast.settings.libpq_url(), autocommit=True)
    relay, worker = cast.relay(), cast.worker()
    cast.wait_for(lambda: cast.one("SELECT count(*) FROM outbox.handler") == 4, "the handlers")
    ordered = cast.order(10)
    cast.await_attached()
    ordered += cast.order(10)
    cast.wait_for(lambda: "No space left on device" in relay.log.read_text(), "the relay's complaint")
    cast.wait_for(lambda: "53100" in worker.log.read_text(), "the worker's complaint")
    ordered += cast.order(10)
    cast.sql.close()
    server.stop()
    for file in files:
        file.unlink()
        file.with_suffix(".free").rename(file)
    server.start()
    cast.sql = psycopg.connect(cast.settings.libpq_url(), autocommit=True)
    cast.check_effects(ordered)
    assert cast.one("SELECT max(crashes) FROM outbox.delivery") == 0
