"""Checks of Redis and of the streams in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import redis as client

from console.doctor import versions
from console.doctor.finding import Verdict, error, fine, info, named, warning, worst
from console.doctor.installation import Installation
from outbox.names import catch_up_key, owner_key, stream_key
from relay.bounds import CATCH_UP, MAIN

OLDEST_REDIS = (6, 2)
OLDEST_VALKEY = (7, 2)

NEARLY = 0.9
"""The part of a limit from which on a stream is at it."""

SCANNED = 1_000_000
"""Keys among which streams of handlers that nobody has are looked for; among more it would take too long."""

Info = Mapping[str, Any]


def redis(installation: Installation) -> Verdict:
    """Whether it answers, and may be written."""
    return _each(installation, usable, "answers")


def usable(server: Info) -> Verdict | None:
    """Judge whether a server takes writes."""
    if server.get("role") == "slave":
        return error("is a replica: it takes no writes", "use the primary's address, or redis+sentinel://")
    if server.get("loading"):
        return error("is loading its data and answers nothing else", "wait until it has started")
    return None


def version(installation: Installation) -> Verdict:
    """Whether it is supported, and has known holes."""
    return worst((released(server) for server in installation.redis_info().values()), "")


def released(server: Info) -> Verdict:
    """Judge a server's version. Valkey tells an old version of Redis too, for clients that ask for that."""
    if "valkey_version" in server:
        return versions.judged("Valkey", str(server["valkey_version"]), OLDEST_VALKEY)
    return versions.judged("Redis", str(server.get("redis_version", "")), OLDEST_REDIS)


def eviction(installation: Installation) -> Verdict:
    """Whether it drops streams when its memory is full."""
    return _each(installation, evicts, "drops no streams")


def evicts(server: Info) -> Verdict | None:
    """Judge its policy. Streams have no expiry, so volatile-… leaves them alone."""
    policy = str(server.get("maxmemory_policy", ""))
    if not policy.startswith("allkeys"):
        return None
    if int(server.get("maxmemory", 0)):
        return warning(f"maxmemory-policy is {policy}: it drops whole streams when its memory is full")
    return info(f"maxmemory-policy is {policy}; without maxmemory it drops nothing")


def memory(installation: Installation) -> Verdict:
    """Whether it has room."""
    return _each(installation, fills, "has room")


def fills(server: Info) -> Verdict | None:
    """Judge how full it is: of what it may use, else of what its machine has."""
    used = int(server.get("used_memory", 0))
    most = int(server.get("maxmemory", 0)) or int(server.get("total_system_memory", 0))
    if not most or used < 0.8 * most:
        return None
    what = "maxmemory" if int(server.get("maxmemory", 0)) else "its machine's memory"
    said = f"uses {used / 2**20:,.0f} MiB, {used / most:.0%} of {what}"
    return (error if used >= 0.95 * most else warning)(said)


def persistence(installation: Installation) -> Verdict:
    """Whether it can write its disk, and what a restart costs."""
    return _each(installation, persists, "keeps an append-only file")


def persists(server: Info) -> Verdict | None:
    """Judge its files."""
    failed = [
        name
        for name in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
        if server.get(name, "ok") != "ok"
    ]
    if failed:
        said = f"cannot write its disk ({named(failed)}): as it is set by default it refuses every write then"
        return error(said, "give its disk room; its log says what it could not do")
    if not int(server.get("aof_enabled", 0)):
        return info(
            "keeps no append-only file: after a restart streams are fed again from PostgreSQL, and nothing is lost"
        )
    return None


def prefix(installation: Installation) -> Verdict:
    """Whether the keys are this installation's."""
    holder = cast(bytes | None, installation.redis().get(owner_key(installation.settings.prefix)))
    with installation.reading() as connection:
        row = connection.execute(
            "SELECT system_identifier::text || '/' || current_database() FROM pg_control_system()"
        ).fetchone()
    assert row is not None
    return owned(installation.settings.prefix, f"{row[0]}/{installation.schema}", holder)


def owned(prefix: str, owner: str, holder: bytes | None) -> Verdict:
    """Judge whose a prefix is: `owner` asks, `holder` is who Redis says has it."""
    if holder is None:
        return fine(f"nobody has the prefix {prefix!r} yet")
    if holder != owner.encode():
        return error(
            f"the prefix {prefix!r} belongs to {holder.decode(errors='replace')}, this installation is {owner}"
            " (server/database/schema)"
        )
    return fine(f"the prefix {prefix!r} is this installation's")


def groups(installation: Installation) -> Verdict:
    """Whether there are groups of handlers that nobody knows, or streams that nobody reads."""
    redis, prefix = installation.redis(), installation.settings.prefix
    rows = installation.rows("streams")
    found = [verdict for row in rows for verdict in _leftovers(redis, stream_key(prefix, row["name"]), row["handlers"])]
    known = {catch_up_key(prefix, row["name"], handler) for row in rows for handler in row["handlers"]}
    return worst(found + _strays(installation, known), "every group is a known handler's")


def _strays(installation: Installation, known: set[str]) -> list[Verdict]:
    """Catch-up streams of handlers that nobody has: nothing writes or trims them any more."""
    counts = (
        database.get("keys", 0)
        for server in installation.redis_info().values()
        for name, database in server.items()
        if name.startswith("db") and isinstance(database, Mapping)
    )
    if sum(counts) > SCANNED:
        return []
    pattern = catch_up_key(installation.settings.prefix, "*", "*")
    keys = {key.decode() for key in installation.redis().scan_iter(match=pattern, count=1_000)}
    strays = sorted(keys - known)
    return [warning(f"{named(strays)}: streams of no known handler", f"DEL {' '.join(strays)}")] if strays else []


def _leftovers(redis: client.Redis, key: str, handlers: list[str]) -> Iterator[Verdict]:
    try:
        found: Any = redis.xinfo_groups(key)
    except client.ResponseError as problem:
        if "no such key" in str(problem):
            return
        raise
    for group in found:
        name = group["name"].decode(errors="replace")
        if name not in handlers:
            yield warning(f"{key} has a group {name}, with {group['pending']:,} pending entries, of no known handler")
    if not handlers and not found and (length := redis.xlen(key)):
        yield info(f"{key} holds {length:,} entries that no handler reads", f"DEL {key}")


def streams(installation: Installation) -> Verdict:
    """Whether one is about to be trimmed past a handler that lags, or a catch-up feed waits for its handler."""
    redis, prefix = installation.redis(), installation.settings.prefix
    verdicts = []
    for row in installation.rows("streams"):
        key = stream_key(prefix, row["name"])
        if _full(redis, key, *MAIN):
            verdicts.append(
                warning(f"{key} holds {redis.xlen(key):,} entries: it is trimmed past the handlers that lag most")
            )
        for handler in row["handlers"]:
            key = catch_up_key(prefix, row["name"], handler)
            if _full(redis, key, *CATCH_UP):
                verdicts.append(info(f"{key} is full: its feed waits for {handler}"))
    return worst(verdicts, "none is at its limit")


def _full(redis: client.Redis, key: str, entries: int, size: int) -> bool:
    if redis.xlen(key) >= NEARLY * entries:
        return True
    used = redis.memory_usage(key)
    return (used or 0) >= NEARLY * size


def _each(installation: Installation, judge: Callable[[Info], Verdict | None], otherwise: str) -> Verdict:
    """Every server by itself."""
    found = []
    for name, server in installation.redis_info().items():
        verdict = judge(server)
        if verdict is not None:
            found.append(Verdict(verdict.severity, f"{name} {verdict.evidence}", verdict.remedy))
    return worst(found, f"{named(installation.redis_info())} {otherwise}")
