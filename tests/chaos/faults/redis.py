"""Faults of Redis and of what it keeps."""

from __future__ import annotations

import contextlib
import os

import redis

from outbox.names import stream_key
from tests.chaos.cluster import Cluster
from tests.chaos.faults.ground import NotPossible, Undo, fill, freeze, kind
from tests.chaos.schedule import Fault

NAMES = ("order", "booked", "note", "later")
"""Event names, for what hits one stream."""


@kind("redis restart")
def redis_restart(cluster: Cluster, fault: Fault) -> Undo:
    """kill -9, and a start with what is on its disk, if anything is."""
    cluster.primary.kill()
    return cluster.start_redis


@kind("redis empty")
def redis_empty(cluster: Cluster, fault: Fault) -> Undo:
    """kill -9, and a start with nothing."""
    cluster.primary.kill()
    cluster.forget_files(cluster.primary)
    return cluster.start_redis


@kind("redis tail lost")
def redis_tail_lost(cluster: Cluster, fault: Fault) -> Undo:
    """kill -9, and a start without the end of its file."""
    server = cluster.primary
    server.kill()
    for file in (server.folder / "appendonlydir").glob("*.incr.aof"):
        os.truncate(file, int(file.stat().st_size * (0.5 + fault.chance / 2)))
    return cluster.start_redis


@kind("redis freeze")
def redisfreeze(cluster: Cluster, fault: Fault) -> Undo:
    """SIGSTOP."""
    return freeze(cluster.primary)


def _limit_memory(cluster: Cluster, fault: Fault, policy: str) -> Undo:
    with cluster.redis() as client:
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory-policy", policy)
        client.config_set("maxmemory", int(used + fault.chance * 200_000))

    def free() -> None:
        with contextlib.suppress(redis.RedisError), cluster.redis() as client:
            client.config_set("maxmemory", 0)
            client.config_set("maxmemory-policy", "noeviction")

    return free


@kind("redis memory")
def redis_memory(cluster: Cluster, fault: Fault) -> Undo:
    """No memory: what would take some is refused."""
    return _limit_memory(cluster, fault, "noeviction")


@kind("redis evicts")
def redis_evicts(cluster: Cluster, fault: Fault) -> Undo:
    """No memory: whole streams are dropped."""
    return _limit_memory(cluster, fault, "allkeys-random")


@kind("redis disk full")
def redis_disk_full(cluster: Cluster, fault: Fault) -> Undo:
    """Nothing more fits on its disk."""
    return fill(cluster.folder / "redis-1")


@kind("failover")
def failover(cluster: Cluster, fault: Fault) -> Undo | None:
    """The replica gets nothing for a while, then it is the primary."""
    if cluster.replication is None or cluster.primary.process is None:
        raise NotPossible("there is no replica")
    way = cluster.replication
    way.hold()

    def promote() -> None:
        if cluster.replication is way:
            cluster.start_redis()
            cluster.promote(split=fault.chance < 0.4)

    return promote


@kind("flushall")
def flushall(cluster: Cluster, fault: Fault) -> None:
    """FLUSHALL."""
    with cluster.redis() as client:
        client.flushall()


@kind("script flush")
def script_flush(cluster: Cluster, fault: Fault) -> None:
    """SCRIPT FLUSH."""
    with cluster.redis() as client:
        client.script_flush()


@kind("client kill")
def client_kill(cluster: Cluster, fault: Fault) -> None:
    """Every client's connection ends."""
    with cluster.redis() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def _key(fault: Fault) -> str:
    return stream_key("outbox", NAMES[int(fault.chance * len(NAMES))])


@kind("delete stream")
def delete_stream(cluster: Cluster, fault: Fault) -> None:
    """DEL of a main stream."""
    with cluster.redis() as client:
        client.delete(_key(fault))


@kind("destroy group")
def destroy_group(cluster: Cluster, fault: Fault) -> None:
    """XGROUP DESTROY of every group of a stream, with what was pending."""
    with cluster.redis() as client:
        for group in client.xinfo_groups(_key(fault)):
            client.xgroup_destroy(_key(fault), group["name"])


@kind("trim stream")
def trim_stream(cluster: Cluster, fault: Fault) -> None:
    """Somebody else trims a stream to its last entries."""
    with cluster.redis() as client:
        client.xtrim(_key(fault), maxlen=int(fault.chance * 5), approximate=False)


@kind("delete consumer")
def delete_consumer(cluster: Cluster, fault: Fault) -> None:
    """XGROUP DELCONSUMER, with what was pending."""
    with cluster.redis() as client:
        for group in client.xinfo_groups(_key(fault)):
            for consumer in client.xinfo_consumers(_key(fault), group["name"]):
                client.xgroup_delconsumer(_key(fault), group["name"], consumer["name"])
