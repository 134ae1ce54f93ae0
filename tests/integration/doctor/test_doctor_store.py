"""The doctor at Redis and at clocks: every check fires when it should."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from pydantic import SecretStr

from console.doctor import (
    clocks,
    examine,
    store,
)
from console.servers import Redis
from outbox.names import catch_up_key, owner_key, stream_key
from outbox.settings import Settings
from relay.bounds import Limit
from tests.integration.doctor.conftest import ERROR, INFO, OK, WARNING, Db, client, look, register


def test_a_redis_that_is_away_is_one_error_and_what_needs_it_is_not_tried(settings: Settings) -> None:
    away = settings.model_copy(update={"redis_url": SecretStr("redis://:s3cret@127.0.0.1:1/0")})
    found = {finding.check: finding for finding in examine(away)}
    assert found["redis"].severity is ERROR
    assert "redis://:***@127.0.0.1:1/0" in found["redis"].evidence
    assert "s3cret" not in str(found)
    assert not found["groups"].made
    assert found["schema"].severity is OK


def test_a_replica_is_found(own_redis: Settings, start_redis: Callable[..., Redis]) -> None:
    primary = start_redis()
    client(own_redis).replicaof("127.0.0.1", str(primary.port))
    assert look(own_redis, "redis").severity is ERROR


def test_a_redis_that_evicts_streams_is_found(own_redis: Settings) -> None:
    server = client(own_redis)
    server.config_set("maxmemory-policy", "allkeys-lru")
    assert look(own_redis, "eviction").severity is INFO
    server.config_set("maxmemory", "1gb")
    found = look(own_redis, "eviction")
    assert (found.severity, found.evidence.partition(":")[0]) == (WARNING, "Redis maxmemory-policy is allkeys-lru")
    server.config_set("maxmemory-policy", "noeviction")
    assert look(own_redis, "eviction").severity is OK


def test_a_redis_that_is_nearly_full_is_found(own_redis: Settings) -> None:
    server = client(own_redis)
    used = int(server.info("memory")["used_memory"])
    server.config_set("maxmemory", used)
    assert look(own_redis, "memory").severity is ERROR
    server.config_set("maxmemory", 100 * used)
    assert look(own_redis, "memory").severity is OK


def test_a_redis_that_cannot_write_its_disk_is_found(own_redis: Settings, redis_server: Redis) -> None:
    assert look(own_redis, "persistence").severity is INFO, "it keeps nothing, which is survived"
    shutil.rmtree(redis_server.folder)
    server = client(own_redis)
    server.set("a", "b")
    server.bgsave()
    deadline = time.monotonic() + 30
    while server.info("persistence")["rdb_last_bgsave_status"] == "ok":
        assert time.monotonic() < deadline
    found = look(own_redis, "persistence")
    assert found.severity is ERROR
    assert "rdb_last_bgsave_status" in found.evidence


@pytest.mark.parametrize("wrong", ["PostgreSQL", "Redis"])
def test_a_clock_that_differs_is_found(settings: Settings, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    assert look(settings, "clocks").severity is OK
    # Read before and after PostgreSQL, then before and after Redis.
    early = iter([3700, 3700, 0, 0] if wrong == "PostgreSQL" else [0, 0, 3700, 3700])
    monkeypatch.setattr(clocks, "time", SimpleNamespace(time=lambda: time.time() - next(early)))
    found = look(settings, "clocks")
    assert found.severity is WARNING
    assert found.evidence.startswith(f"the clock of {wrong} is 61 min ahead of that of ")


def test_a_prefix_of_another_installation_is_found(settings: Settings) -> None:
    client(settings).set(owner_key(settings.prefix), "7/other/outbox")
    found = look(settings, "prefix")
    assert found.severity is ERROR
    assert "belongs to 7/other/outbox" in found.evidence


def test_groups_of_handlers_that_nobody_knows_are_found(settings: Settings, db: Db) -> None:
    register(db)
    key = stream_key(settings.prefix, "paid")
    client(settings).xgroup_create(key, "bill", "0", mkstream=True)
    assert look(settings, "groups").severity is OK
    client(settings).xgroup_create(key, "gone", "0")
    found = look(settings, "groups")
    assert found.severity is WARNING
    assert f"{key} has a group gone" in found.evidence


def test_catch_up_streams_of_handlers_that_nobody_knows_are_found(settings: Settings, db: Db) -> None:
    register(db)
    for handler in ("bill", "gone"):
        client(settings).xadd(catch_up_key(settings.prefix, "paid", handler), {"a": "b"})
    found = look(settings, "groups")
    key = catch_up_key(settings.prefix, "paid", "gone")
    assert (found.severity, found.evidence) == (WARNING, f"{key}: streams of no known handler")
    assert found.remedy == f"DEL {key}"


def test_streams_that_nobody_reads_are_a_remark(settings: Settings, db: Db) -> None:
    db.execute("INSERT INTO outbox.stream (name, tick, seq) VALUES ('left', 1, 1)")
    client(settings).xadd(stream_key(settings.prefix, "left"), {"a": "b"})
    found = look(settings, "groups")
    assert found.severity is INFO
    assert "holds 1 entries that no handler reads" in found.evidence


def test_streams_at_their_limit_are_found(settings: Settings, db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    register(db)
    for _ in range(3):
        client(settings).xadd(stream_key(settings.prefix, "paid"), {"a": "b"})
    assert look(settings, "streams").severity is OK
    monkeypatch.setattr(store, "MAIN", Limit(entries=3, size=1 << 20))
    assert "holds 3 entries" in look(settings, "streams").evidence
    monkeypatch.setattr(store, "MAIN", Limit(entries=100, size=100))
    assert look(settings, "streams").severity is WARNING
    client(settings).xadd(f"{stream_key(settings.prefix, 'paid')}:bill", {"a": "b"})
    monkeypatch.setattr(store, "MAIN", Limit(entries=100, size=1 << 20))
    monkeypatch.setattr(store, "CATCH_UP", Limit(entries=1, size=1 << 20))
    assert look(settings, "streams").severity is INFO


def test_a_user_of_redis_with_few_rights_keeps_no_check_from_being_made(own_redis: Settings) -> None:
    client(own_redis).execute_command("ACL SETUSER few on >secret ~* +ping +info")
    url = own_redis.redis_url.get_secret_value().replace("//", "//few:secret@")
    found = {finding.check: finding for finding in examine(own_redis.model_copy(update={"redis_url": SecretStr(url)}))}
    assert found["memory"].severity is OK
    assert (found["prefix"].severity, found["prefix"].made) == (INFO, False)
