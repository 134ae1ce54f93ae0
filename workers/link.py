"""Connections to Redis: which server has which stream, and which of its errors heal by waiting."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import redis.asyncio
import structlog
from hiredis import pack_command
from redis.crc import key_slot
from redis.exceptions import ConnectionError, NoScriptError, RedisError, ResponseError

from outbox.address import Kind, parse
from outbox.redis import LEAVING, UNKNOWN, close_asyncio, cluster_map, connect_asyncio, connect_node
from workers.queries import lua

Redis = redis.asyncio.Redis
Keyed = TypeVar("Keyed")

Unreachable = (RedisError, OSError, TimeoutError)

# hiredis' declaration has room for one word only.
_pack: Callable[[tuple[str | bytes | int, ...]], bytes] = pack_command  # type: ignore[assignment]

RAW = ("XREAD", "XREADGROUP", "XPENDING", "XCLAIM", "XRANGE", "XINFO GROUPS", "XINFO CONSUMERS")

TIMEOUT = 5.0
"""Seconds without a reply after which a command fails. None is repeated by its client: a read that is repeated would
leave the entries of the first one unread."""

BLOCKING_TIMEOUT = 10.0
"""The same where a command may block."""

CONNECT_TIMEOUT = 5.0

LOCATE_EVERY = 1.0
"""Seconds between two questions to a cluster who has which keys."""


class Servers:
    """One server that has all streams; behind Sentinels, whichever is the primary."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = _raw(connect_asyncio(url, timeout=TIMEOUT, connect_timeout=CONNECT_TIMEOUT))

    def at(self, key: str) -> Redis:
        """The client of the server that has this key. Stream replies come as the server sends them."""
        return self._client

    def bell(self, key: str) -> Redis:
        """A client of the caller's own for commands that block, at the server that has this key."""
        return _raw(connect_asyncio(self._url, timeout=BLOCKING_TIMEOUT, connect_timeout=CONNECT_TIMEOUT))

    def together(self, key: str) -> int:
        """A number that is the same for all keys that one command may name."""
        return 0

    async def locate(self) -> None:
        """Find out who has which keys. Raises one of `Unreachable`."""

    async def keep_located(self) -> None:
        """Do so again and again until cancelled, where it can change."""

    async def aclose(self) -> None:
        """Close all but the bells."""
        await close_asyncio(self._client)


class Nodes(Servers):
    """A cluster: a plain client for each node, and redis-py's map of the slots.

    A command that went to the wrong node fails, and is repeated like one that met no server at all: by then the map is
    new. Streams of one slot are those of one event name.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._map = cluster_map(url, timeout=TIMEOUT)
        self._clients: dict[tuple[str, int], Redis] = {}

    def at(self, key: str) -> Redis:
        place = self._place(key)
        client = self._clients.get(place)
        if client is None:
            client = connect_node(self._url, *place, timeout=TIMEOUT, connect_timeout=CONNECT_TIMEOUT)
            self._clients[place] = _raw(client)
        return client

    def bell(self, key: str) -> Redis:
        place = self._place(key)
        return _raw(connect_node(self._url, *place, timeout=BLOCKING_TIMEOUT, connect_timeout=CONNECT_TIMEOUT))

    def together(self, key: str) -> int:
        return key_slot(key.encode())

    async def locate(self) -> None:
        try:
            await self._map.initialize()
        except UNKNOWN as error:
            raise ConnectionError(str(error)) from error

    async def keep_located(self) -> None:
        while True:
            await asyncio.sleep(LOCATE_EVERY)
            try:
                await self.locate()
            except Unreachable as error:
                structlog.get_logger().warning("cluster.unknown", error=type(error).__name__)

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.aclose()
        await self._map.aclose()
        await self._map.aclose("startup_nodes")

    def _place(self, key: str) -> tuple[str, int]:
        try:
            node = self._map.get_node_from_slot(self.together(key))
        except UNKNOWN as error:
            raise ConnectionError("no node of the cluster has this key") from error
        return node.host, int(node.port)


def connect(url: str) -> Servers:
    """The servers at a URL. Nothing is asked of them before `locate`."""
    return Nodes(url) if parse(url).kind is Kind.CLUSTER else Servers(url)


def by_server(servers: Servers, keyed: Iterable[tuple[str, Keyed]]) -> dict[Redis, list[tuple[str, Keyed]]]:
    """Things with a key each, grouped by the server that has the key: what can go into one pipeline."""
    groups: dict[Redis, list[tuple[str, Keyed]]] = {}
    for key, thing in keyed:
        groups.setdefault(servers.at(key), []).append((key, thing))
    return groups


def _raw(client: Redis) -> Redis:
    for name in RAW:
        client.set_response_callback(name, _as_it_came)
    return client


def _as_it_came(response: Any, **_: Any) -> Any:
    return response


async def command(client: Redis, *words: str | bytes | int) -> Any:
    """The reply to a command in its own words."""
    return await client.execute_command(*words)  # type: ignore[no-untyped-call]


async def exchange(client: Redis, commands: list[tuple[str | bytes | int, ...]]) -> list[Any]:
    """The replies to commands that are sent together. Errors that Redis replies are among them, but for those that end
    their connection: they are raised.

    A pipeline does the same and takes 40 % longer for two short commands; redis-py's own packing takes four to nine
    times as long as hiredis'.
    """
    pool = client.connection_pool
    connection = await pool.get_connection()  # type: ignore[no-untyped-call]
    replies: list[Any] = []
    try:
        await connection.send_packed_command(b"".join([_pack(words) for words in commands]))
        while len(replies) < len(commands):
            try:
                replies.append(await connection.read_response())
            except LEAVING:
                raise
            except ResponseError as error:
                replies.append(error)
    finally:
        if len(replies) < len(commands):
            await connection.disconnect(nowait=True)
        await pool.release(connection)
    return replies


class Script:
    """A Lua script with one key, loaded again whenever a server forgot it."""

    def __init__(self, servers: Servers, name: str) -> None:
        self._servers = servers
        self._text = lua(name)
        self._sha = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    def words(self, key: str, *arguments: str | bytes | int) -> tuple[str | bytes | int, ...]:
        """A call as a command, for `exchange`."""
        return ("EVALSHA", self._sha, 1, key, *arguments)

    async def __call__(self, key: str, *arguments: str | bytes | int) -> Any:
        [reply] = await self.exchange(self._servers.at(key), [self.words(key, *arguments)])
        if isinstance(reply, ResponseError):
            raise reply
        return reply

    async def exchange(self, client: Redis, commands: list[tuple[str | bytes | int, ...]]) -> list[Any]:
        """Like the function `exchange`, for calls of this script and commands besides."""
        replies = await exchange(client, commands)
        unknown = [number for number, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            again = await exchange(client, [("SCRIPT", "LOAD", self._text), *(commands[number] for number in unknown)])
            for number, reply in zip(unknown, again[1:], strict=True):
                replies[number] = reply
        return replies
