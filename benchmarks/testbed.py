"""The servers every side of a benchmark meets: one durable PostgreSQL and one Valkey without persistence.

What a measurement starts from is prepared once, as a template database and a copy of the Redis keys, and set up anew
from those for every run.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import redis

from benchmarks.program import Program
from console.servers import Postgres
from console.servers import Redis as RedisServer
from outbox import migrations

POSTGRES_OPTIONS = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "max_connections": "100",
}
"""The same for all sides. The rest is PostgreSQL's default: fsync, full_page_writes and synchronous_commit are on."""

Keys = dict[bytes, bytes]


@dataclass(frozen=True)
class Testbed:
    """Both servers, and what benchmarks do with them."""

    folder: Path
    postgres: Postgres
    redis_server: RedisServer
    redis: redis.Redis

    def connect(self, database: str, **options: Any) -> psycopg.Connection:
        """A connection in autocommit mode."""
        return psycopg.connect(self.postgres.url(database), autocommit=True, **options)

    def create(self, database: str, *, template: str | None = None, migrated: bool = True) -> None:
        """Make `database` anew: a copy of `template`, or empty with or without our schema."""
        with self.connect("postgres") as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
            source = f"TEMPLATE {template} STRATEGY FILE_COPY" if template else ""
            admin.execute(f"CREATE DATABASE {database} {source}")
            admin.execute("CHECKPOINT")
        if migrated and template is None:
            migrations.apply(self.postgres.url(database))

    def drop(self, database: str) -> None:
        """Remove `database`, whoever is connected."""
        with self.connect("postgres") as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")

    def copy_keys(self) -> Keys:
        """Every stream as it is now. The marker of the prefix's owner stays behind: it names the database."""
        found: dict[bytes, Any] = {key: self.redis.dump(key) for key in self.redis.scan_iter(_type="stream")}
        return found

    def restore_keys(self, keys: Keys) -> None:
        """Make Redis hold exactly `keys`."""
        self.redis.flushall()
        for key, value in keys.items():
            self.redis.restore(key, 0, value)

    def settings(self, database: str) -> dict[str, str]:
        """The environment of a relay or worker on `database`."""
        return {
            "OUTBOX_DATABASE_URL": self.postgres.url(database),
            "OUTBOX_REDIS_URL": self.redis_server.url,
            "OUTBOX_LOG_LEVEL": "warning",
        }

    def relay(self, database: str) -> Program:
        """A relay, as users run it."""
        return self._program("relay", ["-m", "console.main", "relay"], database)

    def worker(self, database: str, app: str, *options: str, **environment: str) -> Program:
        """A worker for `app`, as users run it: one process, unless the options say otherwise."""
        return self._program("worker", ["-m", "console.main", "worker", app, *options], database, **environment)

    def module(self, name: str, *arguments: str, database: str) -> Program:
        """One of this package's own programs."""
        return self._program(name, ["-m", f"benchmarks.{name}", *arguments], database)

    def _program(self, name: str, arguments: list[str], database: str, **environment: str) -> Program:
        return Program(name, arguments, folder=self.folder, settings=self.settings(database) | environment)


@contextmanager
def testbed() -> Iterator[Testbed]:
    """Both servers in a temporary folder that goes when the context is left."""
    folder = Path(tempfile.mkdtemp(prefix="obx-bench-"))
    folder.chmod(0o755)
    try:
        with (
            Postgres(folder / "pg", options=POSTGRES_OPTIONS) as postgres,
            RedisServer(folder / "redis") as server,
            redis.Redis.from_url(server.url) as client,
        ):
            yield Testbed(folder, postgres, server, client)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
