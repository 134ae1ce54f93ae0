"""Redis clients for every kind of address, on top of redis-py's own for Sentinel and Cluster. For relay and workers.

No client repeats a command: whoever calls knows whether that is right, and for how long.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.cluster
import redis.retry
import redis.sentinel
from redis.backoff import NoBackoff
from redis.connection import SSLConnection, parse_url
from redis.crc import key_slot
from redis.exceptions import RedisClusterException

from outbox.address import Address, Kind, parse

UNKNOWN = (RedisClusterException, KeyError)
"""What redis-py raises when no node of a cluster answers, or a slot is nobody's."""

LEAVING = (redis.ReadOnlyError,)
"""Errors that end their connection: the address may lead to another server by now, which became the primary."""

CONNECT_TIMEOUT = 2.0
"""Seconds within which a server must take a connection."""


class Cluster(redis.cluster.RedisCluster):
    """redis-py's cluster client; that no node answers, or that a slot is nobody's, is a connection error."""

    def execute_command(self, *words: Any, **options: Any) -> Any:
        """Run a command where its key is."""
        try:
            return super().execute_command(*words, **options)  # type: ignore[no-untyped-call]
        except RedisClusterException as error:
            raise redis.ConnectionError(str(error)) from error

    def locate(self) -> None:
        """Ask the cluster anew who has which keys."""
        try:
            self.nodes_manager.initialize()
        except UNKNOWN as error:
            raise redis.ConnectionError(str(error)) from error

    def server_of(self, key: str) -> redis.Redis:
        """A client of the one server that has `key`, as far as is known."""
        try:
            node = self.nodes_manager.get_node_from_slot(key_slot(key.encode()))
        except UNKNOWN as error:
            raise redis.ConnectionError(str(error)) from error
        return self.get_redis_connection(node)


def connect(url: str, *, timeout: float, connect_timeout: float = CONNECT_TIMEOUT) -> redis.Redis:
    """A client, whatever the kind of address; `timeout` is in seconds and for each reply.

    For a cluster it is a `Cluster`, which stands in for a `redis.Redis`: it takes every command, and every script, that
    names one key. Raises `redis.ConnectionError` when no node of a cluster answers; other servers are reached with the
    first command.
    """
    address = parse(url)
    given = _given(timeout, connect_timeout) | {"retry": redis.retry.Retry(NoBackoff(), 0)}
    if address.kind is Kind.SERVER:
        return redis.Redis.from_url(url, retry_on_error=list(LEAVING), **_fit(given, url))
    options = given | _options(address)
    if address.kind is Kind.CLUSTER:
        nodes = [redis.cluster.ClusterNode(*host) for host in address.hosts]  # type: ignore[no-untyped-call]
        try:
            return cast(redis.Redis, Cluster(startup_nodes=nodes, **options))
        except UNKNOWN as error:
            raise redis.ConnectionError(str(error)) from error
    kwargs = _for_sentinels(address, options)
    manager = redis.sentinel.Sentinel(address.hosts, sentinel_kwargs=kwargs, **options)  # type: ignore[no-untyped-call]
    return cast(redis.Redis, manager.master_for(address.service))  # type: ignore[no-untyped-call]


def connect_asyncio(url: str, *, timeout: float, connect_timeout: float = CONNECT_TIMEOUT) -> redis.asyncio.Redis:
    """The same for asyncio, for one server or the primary that Sentinels know."""
    address = parse(url)
    given = _given(timeout, connect_timeout) | {"retry": redis.asyncio.retry.Retry(NoBackoff(), 0)}
    if address.kind is Kind.SERVER:
        return _translated(redis.asyncio.Redis.from_url(url, retry_on_error=list(LEAVING), **_fit(given, url)))
    options = given | _options(address)
    kwargs = _for_sentinels(address, options)
    manager = redis.asyncio.sentinel.Sentinel(  # type: ignore[no-untyped-call]
        address.hosts, sentinel_kwargs=kwargs, **options
    )
    return _translated(cast(redis.asyncio.Redis, manager.master_for(address.service)))


def connect_node(
    url: str, host: str, port: int, *, timeout: float, connect_timeout: float = CONNECT_TIMEOUT
) -> redis.asyncio.Redis:
    """A client of one node of the cluster at `url`."""
    given = _given(timeout, connect_timeout) | {"retry": redis.asyncio.retry.Retry(NoBackoff(), 0)}
    return _translated(redis.asyncio.Redis(host=host, port=port, **given | _options(parse(url))))


def cluster_map(url: str, *, timeout: float) -> redis.asyncio.cluster.NodesManager:
    """Who has which keys in the cluster at `url`: `await .initialize()` asks, `.get_node_from_slot()` tells."""
    address = parse(url)
    nodes = [redis.asyncio.cluster.ClusterNode(*host) for host in address.hosts]
    options = _given(timeout, CONNECT_TIMEOUT) | _options(address)
    return redis.asyncio.cluster.RedisCluster(startup_nodes=nodes, **options).nodes_manager


def _translated(client: redis.asyncio.Redis) -> redis.asyncio.Redis:
    """The client, whose connections raise nothing but redis-py's own errors when they are lost."""
    pool: Any = client.connection_pool
    pool.connection_class = _translating(pool.connection_class)
    return client


@cache
def _translating(kind: type[Any]) -> type[Any]:
    class Translating(kind):  # type: ignore[misc]
        async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            try:
                await super().send_packed_command(command, check_health)
            except RuntimeError as error:
                # uvloop's, for a transport that has closed; asyncio's own loop would lose what is written.
                raise redis.ConnectionError(f"the connection was lost: {error}") from error

    return Translating


async def close_asyncio(client: redis.asyncio.Redis) -> None:
    """Close a client, and those of the Sentinels behind it."""
    await client.aclose()
    manager = getattr(client.connection_pool, "sentinel_manager", None)
    for sentinel in manager.sentinels if manager is not None else ():
        await sentinel.aclose()


def _given(timeout: float, connect_timeout: float) -> dict[str, Any]:
    return {
        "protocol": 2,
        "socket_timeout": timeout,
        "socket_connect_timeout": connect_timeout,
        "socket_keepalive": True,
    }


def _fit(given: dict[str, Any], url: str) -> dict[str, Any]:
    """Arguments that a unix socket's connection takes too."""
    return {name: value for name, value in given.items() if name != "socket_keepalive" or not url.startswith("unix:")}


def _options(address: Address) -> dict[str, Any]:
    """What an address says beyond where the servers are, as arguments of any client."""
    options: dict[str, Any] = parse_url(address.url)  # type: ignore[no-untyped-call]
    for place in ("host", "port"):
        options.pop(place, None)
    if options.pop("connection_class", None) is SSLConnection:
        options["ssl"] = True
    return options


def _for_sentinels(address: Address, options: dict[str, Any]) -> dict[str, Any]:
    """Arguments for the Sentinels' clients: TLS and timeouts as for the servers, but credentials of their own."""
    others = {name: value for name, value in options.items() if name not in ("username", "password", "db")}
    return others | {"username": address.sentinel_username, "password": address.sentinel_password}
