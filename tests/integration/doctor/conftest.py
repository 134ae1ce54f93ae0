"""Looking at an installation with the doctor, and what there is to find."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import redis
from pydantic import SecretStr

from console.doctor import (
    CHECKS,
    Finding,
    Severity,
    examine,
)
from console.servers import Redis
from outbox.names import lock_id
from outbox.settings import Settings

Db = psycopg.Connection[Any]
OK, INFO, WARNING, ERROR = Severity


@pytest.fixture
def settings(database_url: str, outbox_redis_url: str) -> Settings:
    """This test's database, and a prefix of its own in a Redis that tests share."""
    return Settings(  # type: ignore[call-arg]
        database_url=database_url,  # type: ignore[arg-type]
        redis_url=outbox_redis_url,  # type: ignore[arg-type]
        prefix=f"doctor-{uuid.uuid4().hex[:8]}",
        _env_file=None,  # type: ignore[call-arg]
    )


@pytest.fixture
def db(database_url: str) -> Iterator[Db]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def own_redis(settings: Settings, redis_server: Redis) -> Settings:
    """The same with a Redis that this test may set as it likes."""
    return settings.model_copy(update={"redis_url": SecretStr(redis_server.url)})


def look(settings: Settings, name: str) -> Finding:
    """What one check finds."""
    [found] = examine(settings, [check for check in CHECKS if check.name == name])
    return found


def client(settings: Settings) -> redis.Redis:
    return redis.Redis.from_url(settings.redis_url.get_secret_value())


def add(db: Db, name: str = "paid", count: int = 1, age: str = "0 s") -> None:
    db.execute(
        "INSERT INTO outbox.event (name, payload, created_at)"
        " SELECT %s, '{}', clock_timestamp() - %s::interval FROM generate_series(1, %s)",
        [name, age, count],
    )


def register(db: Db, name: str = "bill", event: str = "paid", silent: str = "0 s") -> None:
    db.execute(
        "INSERT INTO outbox.handler (name, event_name, done_tick, done_seq, last_seen)"
        " VALUES (%s, %s, 0, 0, clock_timestamp() - %s::interval)",
        [name, event, silent],
    )


@contextmanager
def leading(database_url: str) -> Iterator[None]:
    with psycopg.connect(database_url, autocommit=True) as leader:
        leader.execute("SELECT pg_advisory_lock(%s)", [lock_id("relay", "outbox")])
        leader.execute("UPDATE outbox.relay SET leader = 'a relay', backend_pid = pg_backend_pid()")
        yield
