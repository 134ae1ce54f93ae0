"""The faults: one function for each kind. It does it, and gives what ends it, if it lasts."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import psycopg
import redis

from console.servers import Server
from outbox.names import stream_key
from tests.chaos.cluster import Cluster, let_go_on, processes, runs
from tests.chaos.schedule import RELAYS, WORKERS, Fault

Undo = Callable[[], None]
Do = Callable[[Cluster, Fault], Undo | None]

FAULTS: dict[str, Do] = {}
"""What each kind of fault does, by its name."""

STEPS = {
    "relay": (
        "relay.ticked", "relay.read", "relay.sent", "relay.appended", "relay.bookmarked", "relay.forgotten",
        "relay.detached", "relay.taken_off", "feed.appended", "feed.moved", "feed.grouped", "feed.attached",
        "feed.restarted", "sweep.filled", "sweep.noted", "sweep.trimmed",
    ),
    "worker": (
        "worker.read", "worker.claimed", "worker.marked", "worker.committing", "worker.committed", "worker.ran",
        "worker.recorded", "worker.acknowledged", "worker.held", "worker.taken_over",
    ),
}  # fmt: skip
"""Failpoints of a relay and of a worker, between two steps each."""

NAMES = ("order", "booked", "note", "later")
"""Event names, for what hits one stream."""


class NotPossible(Exception):
    """This fault cannot be caused here and now; the message says why."""


def kind(name: str) -> Callable[[Do], Do]:
    """Register what a kind of fault does."""

    def register(do: Do) -> Do:
        FAULTS[name] = do
        return do

    return register


def cause(cluster: Cluster, fault: Fault) -> Undo | None:
    """Let a fault happen. Raises `NotPossible`; that a server is away already is no reason to fail."""
    if fault.kind in cluster.skipped:
        raise NotPossible(cluster.skipped[fault.kind])
    try:
        return FAULTS[fault.kind](cluster, fault)
    except (psycopg.OperationalError, redis.RedisError) as error:
        raise NotPossible(f"{type(error).__name__}: the server is away") from None


# Processes


@kind("kill")
def kill(cluster: Cluster, fault: Fault) -> Undo:
    """kill -9, and another one a moment later."""
    program = cluster.programs[fault.target]
    program.kill()
    return program.start


@kind("stop")
def stop(cluster: Cluster, fault: Fault) -> Undo:
    """SIGSTOP; SIGCONT later, when others may have taken over."""
    program = cluster.programs[fault.target]
    program.stand_still()
    return program.go_on


@kind("restart")
def restart(cluster: Cluster, fault: Fault) -> Undo:
    """SIGTERM, in some cases a second one, and another one when it has ended; who takes too long is killed."""
    program = cluster.programs[fault.target]
    program.go_on()
    program.tell_to_end()
    if fault.chance < 0.3:
        program.send(signal.SIGTERM)

    def start() -> None:
        program.kill()
        program.start()

    return start


def _with_failpoint(cluster: Cluster, fault: Fault, action: str) -> Undo:
    role = fault.target.partition("-")[0]
    place = STEPS[role][int(fault.chance * len(STEPS[role]))]
    turn = 1 + int(fault.chance * 997) % 9
    program = cluster.programs[fault.target]
    program.part = replace(program.part, failpoints=f"{place}={action}@{turn}")
    # Another relay must let this one lead, or it would never get there.
    for name in RELAYS if role == "relay" else (fault.target,):
        cluster.programs[name].kill()
    program.start()
    return partial(_start_relays, cluster)


def _start_relays(cluster: Cluster) -> None:
    for name in RELAYS:
        cluster.programs[name].start()


@kind("die between steps")
def die_between_steps(cluster: Cluster, fault: Fault) -> Undo:
    """A worker, or the relay that leads from now on, dies between two exact steps."""
    return _with_failpoint(cluster, fault, "kill")


@kind("stand between steps")
def stand_between_steps(cluster: Cluster, fault: Fault) -> Undo:
    """A worker, or the relay that leads from now on, stands still between two exact steps, while another goes on."""
    others = _with_failpoint(cluster, fault, "stop")

    def go_on() -> None:
        others()
        cluster.programs[fault.target].go_on()

    return go_on


@kind("deploy")
def deploy(cluster: Cluster, fault: Fault) -> None:
    """Workers of a second version, which handles more, take the place of the first's, one after the other."""
    for name in WORKERS:
        program = cluster.programs[name]
        if program.part.version == 1:
            program.part = replace(program.part, version=2)
            program.go_on()
            program.tell_to_end()
            if fault.chance > 0.3 or not program.await_end(1.0):
                program.kill()
            program.start()


# PostgreSQL


@kind("terminate backends")
def terminate_backends(cluster: Cluster, fault: Fault) -> None:
    """Every connection to the database ends."""
    with cluster.sql() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@kind("postgres restart")
def postgres_restart(cluster: Cluster, fault: Fault) -> Undo:
    """An immediate shutdown, or kill -9: what was not flushed is gone."""
    cluster.crashes += 1
    let_go_on(cluster.postgres)
    cluster.postgres.stop(signal.SIGQUIT if fault.chance < 0.5 else signal.SIGKILL)
    return cluster.start_postgres


@kind("postgres freeze")
def postgres_freeze(cluster: Cluster, fault: Fault) -> Undo:
    """The server and all of its processes stand still."""
    return _freeze(cluster.postgres)


def _freeze(server: Server) -> Undo:
    frozen = processes(server)
    for pid in frozen:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    return lambda: let_go_on(server)


@kind("postgres disk full")
def postgres_disk_full(cluster: Cluster, fault: Fault) -> Undo:
    """Nothing more fits on its disk; for lack of space it may crash."""
    empty = _fill(cluster.postgres.folder)

    def heal() -> None:
        empty()
        if not runs(cluster.postgres):
            cluster.crashes += 1
        cluster.start_postgres()

    return heal


def _fill(place: Path) -> Undo:
    ballast = place / "ballast"
    with ballast.open("ab") as file:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)
    return lambda: ballast.unlink(missing_ok=True)


@kind("clock ahead")
def clock_ahead(cluster: Cluster, fault: Fault) -> Undo:
    """The clock jumps an hour ahead, the relay takes a tick and dies, and the clock is right again."""
    for name in RELAYS:
        cluster.programs[name].kill()
    with contextlib.suppress(psycopg.OperationalError), cluster.sql() as connection:
        connection.execute(
            "INSERT INTO outbox.tick (id, snapshot, created_at)"
            " SELECT max(id) + 3600000, pg_current_snapshot(), clock_timestamp() + interval '1 hour' FROM outbox.tick"
        )
    return partial(_start_relays, cluster)


# Redis


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
def redis_freeze(cluster: Cluster, fault: Fault) -> Undo:
    """SIGSTOP."""
    return _freeze(cluster.primary)


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
    return _fill(cluster.folder / "redis-1")


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


# Ways


@kind("link drop")
def link_drop(cluster: Cluster, fault: Fault) -> None:
    """The connections of one program to one server end."""
    cluster.proxies[fault.target].cut()


@kind("link delay")
def link_delay(cluster: Cluster, fault: Fault) -> Undo:
    """Everything takes up to 200 ms longer."""
    cluster.proxies[fault.target].delay = 0.2 * fault.chance
    return cluster.proxies[fault.target].heal


@kind("link hold")
def link_hold(cluster: Cluster, fault: Fault) -> Undo:
    """Half open: nothing comes through, nothing ends."""
    cluster.proxies[fault.target].hold()
    return cluster.proxies[fault.target].heal


@kind("link mute")
def link_mute(cluster: Cluster, fault: Fault) -> Undo:
    """Replies are lost."""
    cluster.proxies[fault.target].mute()
    return cluster.proxies[fault.target].heal


@kind("link deafen")
def link_deafen(cluster: Cluster, fault: Fault) -> Undo:
    """Requests are lost."""
    cluster.proxies[fault.target].deafen()
    return cluster.proxies[fault.target].heal
