"""Disks that are full for real, of Redis and of PostgreSQL: everything waits, and afterwards each effect is there once.

Neither takes a right that an ordinary user lacks: the kernel refuses Redis files above a size, and some of PostgreSQL's
files lead to a device that is always full.
"""

from __future__ import annotations

import os
import resource
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from console.servers import Postgres, Redis
from outbox import migrations
from outbox.names import stream_key
from outbox.settings import Settings

ROOM = 16 << 10
"""Bytes that are left on the disk of Redis."""

PUBLISHED = """
SELECT NOT EXISTS (SELECT FROM outbox.event WHERE name = 'ordered'
                      AND seq > (SELECT seq FROM outbox.stream WHERE name = 'ordered'))
"""
"""Whether the relay has noted all orders as published. They are added in one transaction after the other."""


class Confined(Redis):
    """A Redis with an append-only file, whose files can be kept from growing."""

    def command(self) -> list[str]:
        # The signal for it would end the server; ignored, the write fails, as on a full disk.
        return ["/bin/sh", "-c", 'trap "" XFSZ; exec "$@"', "sh", *super().command()]

    @property
    def file(self) -> Path:
        """What it appends to."""
        [found] = [*self.folder.glob("appendonly.aof"), *self.folder.glob("appendonlydir/*.incr.aof")]
        return found

    def fill_disk(self) -> None:
        """Leave room for little more."""
        self._confine(self.file.stat().st_size + ROOM)

    def free_disk(self) -> None:
        """Leave room for whatever comes."""
        _, most = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
        self._confine(most)

    def _confine(self, size: int) -> None:
        _, most = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, most))


@pytest.fixture
def confined(scratch: Path, redis_server: Redis) -> Iterator[Confined]:
    made = Confined(scratch / f"redis-{uuid.uuid4().hex[:8]}", program=redis_server.program, persistent=True)
    with made:
        yield made
    shutil.rmtree(made.folder, ignore_errors=True)


@pytest.mark.slow
class TestRedis:
    """Row 21: MISCONF at every write, XACK too."""

    @pytest.fixture
    def settings(self, database_url: str, confined: Confined) -> Settings:
        return Settings(database_url=database_url, redis_url=confined.url, _env_file=None)

    @pytest.mark.parametrize("then", ["there is room again", "it dies, and what it could not write is lost"])
    def test_what_a_redis_with_a_full_disk_refuses_waits_and_effects_are_there_once(
        self, then: str, working: Any, confined: Confined
    ) -> None:
        cast = working
        relay, worker = cast.relay(), cast.worker()
        cast.wait_for(lambda: cast.one("SELECT count(*) FROM outbox.handler") == 4, "the handlers")
        cast.await_attached()
        ordered = cast.order(20)
        cast.await_done()
        confined.fill_disk()
        while "MISCONF" not in relay.log.read_text():
            # Some still fit.
            ordered += cast.order(20)
            cast.wait_for(
                lambda: (
                    cast.one(
                        "SELECT count(*) FROM outbox.event AS e WHERE e.seq > (SELECT max(seq) FROM outbox.stream)"
                    )
                    == 0
                    or "MISCONF" in relay.log.read_text()
                ),
                "the next events on their stream, or refused",
            )
        assert cast.redis.info("persistence")["aof_last_write_status"] == "err"
        with pytest.raises(redis.ResponseError, match="MISCONF"):
            cast.redis.xack(stream_key("outbox", "ordered"), "book", "0-1")
        # Writers do not notice.
        ordered += cast.order(20)
        if then == "there is room again":
            confined.free_disk()
        else:
            confined.kill()
            confined.start()
        cast.check_effects(ordered)
        ordered += cast.order(5)
        cast.check_effects(ordered)
        assert worker.running
        for name in ("ordered", "booked"):
            key = stream_key("outbox", name)
            cast.wait_for(
                lambda key=key: all(group["pending"] == 0 for group in cast.redis.xinfo_groups(key)),
                "all being acknowledged",
            )


@pytest.mark.slow
class TestPostgres:
    """Row 38: no table can grow."""

    @pytest.fixture
    def server(self, scratch: Path) -> Iterator[Postgres]:
        wanted = os.environ.get("OUTBOX_TEST_POSTGRES", "18")
        place: dict[str, Any] = {"version": int(wanted)} if wanted.isdigit() else {"bin_dir": Path(wanted)}
        with Postgres(scratch / f"pg-{uuid.uuid4().hex[:8]}", durable=False, **place) as server:
            yield server
        shutil.rmtree(server.folder, ignore_errors=True)

    @pytest.fixture
    def settings(self, server: Postgres, redis_server: Redis) -> Settings:
        with psycopg.connect(server.url(), autocommit=True) as admin:
            admin.execute("CREATE DATABASE outbox")
        migrations.apply(server.url("outbox"))
        return Settings(database_url=server.url("outbox"), redis_url=redis_server.url, _env_file=None)

    def test_what_cannot_be_stored_is_tried_until_it_can_and_effects_are_there_once(
        self, working: Any, server: Postgres
    ) -> None:
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
