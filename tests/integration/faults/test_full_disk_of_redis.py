"""A Redis whose disk is full for real: what it refuses waits, and effects are there once.

It takes no right that an ordinary user lacks: the kernel refuses files above a size.
"""

from __future__ import annotations

import resource
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from console.servers import Redis
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


@pytest.fixture
def settings(database_url: str, confined: Confined) -> Settings:
    return Settings(database_url=database_url, redis_url=confined.url, _env_file=None)


@pytest.mark.slow
@pytest.mark.parametrize("then", ["there is room again", "it dies, and what it could not write is lost"])
def test_what_a_redis_with_a_full_disk_refuses_waits_and_effects_are_there_once(
    then: str, working: Any, confined: Confined
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
            lambda: cast.one(PUBLISHED) or "MISCONF" in relay.log.read_text(), "the orders on their stream, or refused"
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
