"""What a simulated worker has in place of redis-py's asynchronous client."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import redis

from tests.chaos.model.handlers import HERE
from tests.chaos.model.streams import Redis
from workers import queries

if TYPE_CHECKING:
    from tests.chaos.model.working import Working


class Servers:
    """Stands for `workers.link.Servers`."""

    def __init__(self) -> None:
        self._client = Client(HERE.get())

    def at(self, key: str) -> Client:
        return self._client

    def together(self, key: str) -> int:
        return 0

    async def locate(self) -> None: ...

    async def keep_located(self) -> None: ...

    async def aclose(self) -> None: ...


class Client:
    """Stands for an asynchronous client of redis-py's."""

    def __init__(self, process: Working) -> None:
        self._process = process

    async def ask(self, perform: Callable[[Redis], Any]) -> Any:
        world = self._process.world
        return await self._process.call("redis", lambda: perform(world.redis))

    async def set(self, key: str, value: str, *, nx: bool) -> Any:
        return await self.ask(lambda server: server.set(key, value.encode(), new=nx))

    async def get(self, key: str) -> Any:
        return await self.ask(lambda server: server.get(key))

    async def execute_command(self, *words: Any) -> Any:
        return await self.ask(lambda server: reply(server, words))

    async def xgroup_create(self, key: str, name: str, *, id: str, mkstream: bool) -> None:
        await self.ask(lambda server: server.create_group(key, name, id))

    def pipeline(self, transaction: bool) -> Pipeline:
        return Pipeline(self)


class Pipeline:
    """Commands that are sent together."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._commands: list[tuple[Any, ...]] = []

    def execute_command(self, *words: Any) -> None:
        self._commands.append(words)

    def xack(self, key: str, name: str, *ids: bytes) -> None:
        self._commands.append(("XACK", key, name, *ids))

    async def execute(self) -> list[Any]:
        answers: list[Any] = await self._client.ask(lambda server: [reply(server, words) for words in self._commands])
        return answers


async def exchange(client: Client, commands: list[tuple[Any, ...]]) -> list[Any]:
    """Stands for `workers.link.exchange`: errors that the server replies are among the replies."""

    def each(server: Redis) -> list[Any]:
        replies = []
        for words in commands:
            try:
                replies.append(reply(server, words))
            except redis.ResponseError as error:
                replies.append(error)
        return replies

    answers: list[Any] = await client.ask(each)
    return answers


def reply(server: Redis, words: tuple[Any, ...]) -> Any:
    """The server's reply to a command in its own words."""
    match words:
        case ("EVALSHA", sha, 1, key, name, consumer, idle, *ids) if sha == _sha("renew"):
            return server.renew(key, name, consumer, idle / 1000, *ids)
        case ("EVALSHA", sha, 1, key, name, consumer) if sha == _sha("leave"):
            return server.leave(key, name, consumer.decode() if isinstance(consumer, bytes) else consumer)
        case ("XREADGROUP", "GROUP", name, consumer, "COUNT", count, "STREAMS", key, ">"):
            found = server.read_group(key, name, consumer, count)
            return [[key.encode(), found]] if found else None
        case ("XINFO", "GROUPS", key) | ("XINFO GROUPS", key):
            return server.groups(key)
        case ("XINFO CONSUMERS", key, name):
            return server.consumers(key, name)
        case ("XACK", key, name, *ids):
            return server.acknowledge(key, name, *ids)
        case ("XPENDING", key, name, "IDLE", idle, "-", "+", count):
            return server.pending(key, name, idle / 1000, count)
        case ("XCLAIM", key, name, consumer, idle, *ids, "IDLE", set_idle, "JUSTID"):
            return server.claim(key, name, consumer, idle / 1000, ids, set_idle=set_idle / 1000)
        case ("XCLAIM", key, name, consumer, idle, *ids, "JUSTID"):
            return server.claim(key, name, consumer, idle / 1000, ids)
        case ("XRANGE", key, first, last) if first == last:
            return server.entry(key, first)
    raise LookupError(f"the simulated Redis does not know {words}")


@cache
def _sha(script: str) -> str:
    return hashlib.sha1(queries.lua(script).encode()).hexdigest()
