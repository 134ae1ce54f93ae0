"""Heartbeats of what is in flight: all streams together, and none of them at the mercy of another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis as redis_client
from proxy import Proxy

import workers
from console.servers import Redis
from outbox.names import stream_key
from workers import link

NAMES = ("a", "b", "c")
HEARTBEAT = 0.2

pytestmark = pytest.mark.oldest


class Held:
    """Handlers that each hold an event of their own name until they are let go; and exchanges, as they are sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.app = workers.App()
        self.go = asyncio.Event()
        self.started: list[str] = []
        self.sent: list[tuple[Any, list[str]]] = []
        """The client of each exchange that renews, and the streams it names."""
        self.answered: list[Any] = []
        exchange = link.exchange

        async def noted(client: Any, commands: list[Any]) -> list[Any]:
            # The other script, that removes a consumer, is given no entries.
            named = [words[3] for words in commands if words[0] == "EVALSHA" and len(words) > 6]
            if named:
                self.sent.append((client, named))
            replies = await exchange(client, commands)
            self.answered += [client] if named else []
            return replies

        monkeypatch.setattr(link, "exchange", noted)
        for name in NAMES:
            self.app.handler(name)(self.handler(name))

    def handler(self, name: str) -> Any:
        async def hold() -> None:
            self.started.append(name)
            await self.go.wait()

        hold.__name__ = f"on_{name}"
        return hold

    def publish(self, outbox: Any) -> None:
        for name in NAMES:
            outbox.attach(f"on_{name}", name)
            outbox.publish(name, {})

    def runs_all(self) -> bool:
        return sorted(self.started) == list(NAMES)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(monkeypatch)


def idle(client: redis_client.Redis, name: str) -> int:
    """Milliseconds since the lease of the one entry of a name was renewed."""
    (entry,) = client.xpending_range(stream_key("outbox", name), f"on_{name}", "-", "+", 1)
    return int(entry["time_since_delivered"])


def test_one_exchange_renews_what_is_in_flight_on_all_streams(held: Held, outbox: Any, work: Any, until: Any) -> None:
    held.publish(outbox)

    async def scenario(worker: workers.Worker) -> None:
        await until(held.runs_all)
        held.sent.clear()
        await until(lambda: len(held.sent) >= 3)
        held.go.set()
        await until(lambda: outbox.count("done") == len(NAMES))

    work(held.app, scenario, lease=60.0, heartbeat=HEARTBEAT)
    keys = sorted(stream_key("outbox", name) for name in NAMES)
    assert all(sorted(named) == keys for _, named in held.sent[:3])


def test_a_stream_without_its_group_and_one_that_is_none_keep_no_other_from_being_renewed(
    held: Held, outbox: Any, work: Any, until: Any
) -> None:
    held.publish(outbox)

    async def scenario(worker: workers.Worker) -> None:
        await until(held.runs_all)
        outbox.redis.xgroup_destroy(stream_key("outbox", "a"), "on_a")
        outbox.redis.delete(stream_key("outbox", "b"))
        outbox.redis.set(stream_key("outbox", "b"), "none")
        held.answered.clear()
        await until(lambda: len(held.answered) >= 2)
        began = outbox.redis.time()
        held.answered.clear()
        await until(lambda: len(held.answered) >= 2)
        now = outbox.redis.time()
        assert idle(outbox.redis, "c") < (now[0] - began[0]) * 1000 + (now[1] - began[1]) / 1000
        outbox.redis.delete(stream_key("outbox", "b"))
        held.go.set()
        await until(lambda: outbox.count("done") == len(NAMES))

    work(held.app, scenario, lease=60.0, heartbeat=HEARTBEAT)
    assert sorted(held.started) == list(NAMES)


def test_a_server_that_forgot_the_script_renews_all_the_same(held: Held, outbox: Any, work: Any, until: Any) -> None:
    held.publish(outbox)

    async def scenario(worker: workers.Worker) -> None:
        await until(held.runs_all)
        await until(lambda: held.answered)
        outbox.redis.script_flush()
        # Older than any heartbeat yet to come may leave them.
        for name in NAMES:
            (entry,) = outbox.redis.xpending_range(stream_key("outbox", name), f"on_{name}", "-", "+", 1)
            outbox.redis.xclaim(
                stream_key("outbox", name), f"on_{name}", entry["consumer"], 0, [entry["message_id"]], idle=50_000
            )
        await until(lambda: all(idle(outbox.redis, name) < 50_000 for name in NAMES))
        held.go.set()
        await until(lambda: outbox.count("done") == len(NAMES))

    work(held.app, scenario, lease=60.0, heartbeat=HEARTBEAT)


class Two(link.Servers):
    """Two servers, as nodes of a cluster: the stream of the name `a` is on the second one."""

    def __init__(self, url: str, other: str) -> None:
        super().__init__(url)
        self._other = link.Servers(other)

    def at(self, key: str) -> Any:
        return self._other.at(key) if key.startswith(stream_key("outbox", "a")) else super().at(key)

    def bell(self, key: str) -> Any:
        return self._other.bell(key) if key.startswith(stream_key("outbox", "a")) else super().bell(key)

    def together(self, key: str) -> int:
        return int(key.startswith(stream_key("outbox", "a")))

    async def aclose(self) -> None:
        await super().aclose()
        await self._other.aclose()


def test_a_node_that_does_not_answer_keeps_what_others_have_from_nothing(
    held: Held,
    outbox: Any,
    work: Any,
    until: Any,
    start_redis: Callable[..., Redis],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = start_redis()
    proxy = Proxy(other.port)
    here = outbox.settings.redis_url.get_secret_value()
    monkeypatch.setattr(link, "connect", lambda url: Two(here, f"redis://127.0.0.1:{proxy.port}/0"))
    held.publish(outbox)
    with redis_client.Redis.from_url(other.url) as second:
        key = stream_key("outbox", "a")
        second.xgroup_create(key, "on_a", id="0", mkstream=True)
        for entry_id, fields in outbox.redis.xrange(key):
            second.xadd(key, fields, id=entry_id)

    async def scenario(worker: workers.Worker) -> None:
        await until(held.runs_all)
        await until(lambda: len({client for client, _ in held.sent}) == 2)
        proxy.hold()
        silent = worker._servers.at(key)
        held.sent.clear()
        await until(lambda: [client for client, _ in held.sent].count(silent))
        at = len(held.answered)
        await until(lambda: len(held.answered) >= at + 5)
        # One question is enough for a server that has not answered it.
        assert [client for client, _ in held.sent].count(silent) == 1
        assert silent not in held.answered[at:]
        proxy.release()
        held.go.set()
        await until(lambda: outbox.count("done") == len(NAMES))

    work(held.app, scenario, lease=60.0, heartbeat=HEARTBEAT)
    proxy.close()
