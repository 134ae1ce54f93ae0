"""A Redis that may drop streams when its memory is full: it loses nothing for good, and costs a recovery each time."""

from __future__ import annotations

import redis
import structlog

log = structlog.get_logger()


def warn(client: redis.Redis) -> None:
    """Say so when this Redis is set to evict keys of any kind. Says nothing if it may not be asked."""
    try:
        memory = client.info("memory")
    except redis.exceptions.ResponseError:
        return
    policy = str(memory.get("maxmemory_policy", ""))
    if policy.startswith("allkeys") and int(memory.get("maxmemory", 0)):
        log.warning("redis.evicts", policy=policy, advice="set maxmemory-policy to noeviction")
