"""The simulated Redis answers as a real one does, and the same scripts do the same on both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from outbox.position import Position
from relay import scripts
from relay.progress import AWAY
from tests.chaos.model import streams
from tests.chaos.model.streams import Fields, Redis
from workers import queries

KEY = "s"
Command = tuple[Any, ...]

ids = st.builds(Position, st.integers(1, 3), st.integers(0, 3)).map(str)
some = st.lists(ids.map(str.encode), min_size=1, max_size=3, unique=True)
groups = st.sampled_from(["g", "h"])
consumers = st.sampled_from(["one", "two"])

commands = st.one_of(
    st.tuples(st.just("append"), st.one_of(st.none(), ids), some.map(lambda found: sorted(found, key=Position.parse))),
    st.tuples(st.just("trim"), ids),
    st.tuples(st.just("create"), groups, st.one_of(ids, st.just("$"), st.just("0"))),
    st.tuples(st.just("move"), groups, st.one_of(ids, st.just(str(AWAY)))),
    st.tuples(st.just("read"), groups, consumers, st.integers(1, 3)),
    st.tuples(st.just("acknowledge"), groups, some),
    st.tuples(st.just("pending"), groups),
    st.tuples(st.just("claim"), groups, consumers, some),
    st.tuples(st.just("entry"), ids.map(str.encode)),
    st.tuples(st.just("groups")),
    st.tuples(st.just("consumers"), groups),
    st.tuples(st.just("forget"), groups, consumers),
    st.tuples(st.just("progress"), groups),
    st.tuples(st.just("detach"), groups, ids),
    st.tuples(st.just("renew"), groups, consumers, some),
    st.tuples(st.just("leave"), groups, consumers),
    st.tuples(st.just("delete")),
)


class Real:
    """A connection to a server, without anything that translates its replies."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url, protocol=2)
        self._connection: Any = self._client.connection_pool.get_connection()
        version = self._client.info("server")["redis_version"]
        self.forgets = not version.startswith("6.")

    def do(self, *words: Any) -> Any:
        self._connection.send_command(*words)
        return self._connection.read_response()

    def close(self) -> None:
        self._connection.disconnect()
        self._client.close()


@pytest.fixture(scope="module")
def real(outbox_redis_url: str) -> Iterator[Real]:
    server = Real(outbox_redis_url)
    yield server
    server.close()


def fields(at: bytes) -> Fields:
    return [b"id", at, b"name", b"n", b"key", b"", b"payload", b"{}", b"headers", b"", b"at", b"1"]


def on_real(server: Real, command: Command) -> Any:
    match command:
        case ("append", expected, found):
            words = [word for at in found for word in (at, at, b"", b"{}", b"", b"1")]
            last = expected or progress(server, "g")[0]
            return server.do("EVAL", scripts.lua("append"), 1, KEY, last, "n", *words)
        case ("trim", minid):
            return server.do("XTRIM", KEY, "MINID", "=", minid)
        case ("create", group, start):
            server.do("XGROUP", "CREATE", KEY, group, start, "MKSTREAM")
        case ("move", group, at):
            server.do("XGROUP", "SETID", KEY, group, at)
        case ("read", group, consumer, count):
            found = server.do("XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", KEY, ">")
            return [] if not found else [tuple(each) for each in found[0][1]]
        case ("acknowledge", group, found):
            return server.do("XACK", KEY, group, *found)
        case ("pending", group):
            return [each[:2] for each in server.do("XPENDING", KEY, group, "IDLE", 0, "-", "+", 100)]
        case ("claim", group, consumer, found):
            return server.do("XCLAIM", KEY, group, consumer, 0, *found, "JUSTID")
        case ("entry", at):
            return server.do("XRANGE", KEY, at, at)
        case ("groups",):
            found = [dict(zip(each[::2], each[1::2], strict=True)) for each in server.do("XINFO", "GROUPS", KEY)]
            return sorted((each[b"name"], each[b"last-delivered-id"]) for each in found)
        case ("consumers", group):
            return facts(server.do("XINFO", "CONSUMERS", KEY, group))
        case ("forget", group, consumer):
            server.do("XGROUP", "DELCONSUMER", KEY, group, consumer)
        case ("progress", group):
            return progress(server, group)
        case ("detach", group, cut):
            return server.do("EVAL", scripts.lua("detach"), 1, KEY, group, cut, str(AWAY))
        case ("renew", group, consumer, found):
            return server.do("EVAL", queries.lua("renew"), 1, KEY, group, consumer, 0, *found)
        case ("leave", group, consumer):
            return server.do("EVAL", queries.lua("leave"), 1, KEY, group, consumer)
        case ("delete",):
            return server.do("DEL", KEY)


def progress(server: Real, group: str) -> Any:
    return server.do("EVAL", scripts.lua("progress"), 1, KEY, group)


def facts(found: list[list[Any]]) -> list[tuple[bytes, int]]:
    """Who holds how many; one that holds nothing may or may not be known."""
    named = [dict(zip(each[::2], each[1::2], strict=True)) for each in found]
    return sorted((each[b"name"], each[b"pending"]) for each in named if each[b"pending"])


def on_simulated(server: Redis, command: Command) -> Any:
    match command:
        case ("append", expected, found):
            last = expected.encode() if expected else server.progress(KEY, "g")[0]
            return server.append(KEY, last, [(at, fields(at)) for at in found])
        case ("trim", minid):
            return server.trim(KEY, Position.parse(minid))
        case ("create", group, start):
            server.create_group(KEY, group, start)
        case ("move", group, at):
            server.set_group(KEY, group, at)
        case ("read", group, consumer, count):
            return server.read_group(KEY, group, consumer, count)
        case ("acknowledge", group, found):
            return server.acknowledge(KEY, group, *found)
        case ("pending", group):
            return [each[:2] for each in server.pending(KEY, group, 0, 100)]
        case ("claim", group, consumer, found):
            return server.claim(KEY, group, consumer, 0, found)
        case ("entry", at):
            return server.entry(KEY, at)
        case ("groups",):
            return sorted((each[1], each[3]) for each in server.groups(KEY))
        case ("consumers", group):
            return facts(server.consumers(KEY, group))
        case ("forget", group, consumer):
            server.delete_consumer(KEY, group, consumer)
        case ("progress", group):
            return server.progress(KEY, group)
        case ("detach", group, cut):
            return server.detach(KEY, group, cut.encode(), str(AWAY).encode())
        case ("renew", group, consumer, found):
            return server.renew(KEY, group, consumer, 0, *found)
        case ("leave", group, consumer):
            return server.leave(KEY, group, consumer)
        case ("delete",):
            return server.delete(KEY)


def reply(do: Callable[[Any, Command], Any], server: Any, command: Command) -> Any:
    """What is answered; of an error only that it is one: what is done about it depends on NOGROUP and BUSYGROUP."""
    try:
        return do(server, command)
    except redis.ResponseError as error:
        return next((word for word in ("NOGROUP", "BUSYGROUP") if word in str(error)), "error")


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(commands, max_size=25))
@example([("create", "g", "0"), ("append", None, [b"1-0", b"1-1"]), ("read", "g", "one", 2), ("trim", "1-1"),
          ("claim", "g", "two", [b"1-0", b"1-1"]), ("pending", "g")])  # fmt: skip
@example([("create", "g", "0"), ("append", None, [b"1-0", b"1-1"]), ("read", "g", "one", 2), ("trim", "1-1"),
          ("renew", "g", "one", [b"1-0", b"1-1"]), ("renew", "g", "two", [b"1-1"]),
          ("detach", "g", "3-0")])  # fmt: skip
def test_the_simulated_redis_answers_as_a_real_one(real: Real, story: list[Command]) -> None:
    real.do("DEL", KEY)
    simulated = streams.Redis(lambda: 0.0, forgets=real.forgets)
    for number, command in enumerate(story):
        expected, found = reply(on_real, real, command), reply(on_simulated, simulated, command)
        assert found == expected, story[: number + 1]
