"""Outcomes asked for while the group read is on its way; and what is left of exchanges with Redis that went wrong."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis as redis_client
from pydantic import SecretStr
from redis.exceptions import ResponseError

import workers
from console.servers import Redis
from outbox.names import catch_up_key, stream_key
from outbox.settings import Settings
from workers import consumer, link

pytestmark = pytest.mark.oldest

KEY = stream_key("outbox", "e")

DONE = (
    "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
    " SELECT id, 'h', created_at, 'done', 1 FROM outbox.event WHERE id::text = %s"
)


class Lookups:
    """What a consumer asks about, in order: how many events, and whether before its group read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[int, bool]] = []
        self.ahead_of: Callable[[], Any] | None = None
        """Called between the first question and the group read."""
        ask, exchange, asking = consumer.Consumer._seen, link.exchange, self
        pending: set[asyncio.Task[Any]] = set()

        async def seen(self: Any, lane: Any, jobs: list[Any]) -> Any:
            task = asyncio.current_task()
            assert task is not None
            # A question ahead is a task of its own.
            ahead = getattr(task.get_coro(), "__name__", "") == "seen"
            asking.asked.append((len(jobs), ahead))
            if ahead:
                pending.add(task)
            return await ask(self, lane, jobs)

        async def slow(client: Any, commands: Any) -> Any:
            if asking.ahead_of is not None:
                await asyncio.sleep(0)
                if pending:
                    await asyncio.wait(pending)
                    asking.ahead_of()
            pending.clear()
            return await exchange(client, commands)

        monkeypatch.setattr(consumer.Consumer, "_seen", seen)
        monkeypatch.setattr(consumer, "exchange", slow)


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Lookups:
    return Lookups(monkeypatch)


@pytest.fixture
def app() -> workers.App:
    """One plain handler `h` of the event `e`, which notes its runs in `app.runs`."""
    app = workers.App()
    app.runs = []  # type: ignore[attr-defined]

    @app.handler("e", name="h")
    async def h(n: int) -> None:
        app.runs.append(n)  # type: ignore[attr-defined]

    return app


def source_of(worker: workers.Worker) -> Any:
    """The main stream's source."""
    [main] = [source for source in worker._sources if source.main]
    return main


def listening(worker: workers.Worker) -> bool:
    """Whether the worker waits for its main stream to ring."""
    bells = worker._consumer._bells.values()
    return any(bell.ring is not None and not bell.ring.done() and bell._id and bell.covers([KEY]) for bell in bells)


def test_the_entry_that_rang_is_asked_about_before_it_is_read_and_only_once(
    outbox: Any, work: Any, until: Any, app: Any, lookups: Lookups
) -> None:
    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        for n in range(3):
            await until(lambda: listening(worker))
            outbox.publish("e", {"n": n})
            await until(lambda n=n: outbox.count("done") == n + 1 and not outbox.pending("e", "h"))

    work(app, scenario)
    assert app.runs == [0, 1, 2]
    assert lookups.asked == [(1, True)] * 3


def test_an_answer_about_one_entry_is_not_taken_for_several(
    outbox: Any, work: Any, until: Any, app: Any, lookups: Lookups
) -> None:
    outbox.attach("h", "e")
    events: list[Any] = outbox.write("e", {"n": 0}, {"n": 1}, {"n": 2})
    outbox.sql.execute(DONE, [events[1][0]])
    # One rings; by the time it is read there are three.
    lookups.ahead_of = lambda: outbox.push("e", events[1:])

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: listening(worker))
        outbox.push("e", events[:1])
        await until(lambda: outbox.count("done") == 3 and not outbox.pending("e", "h"))

    work(app, scenario)
    assert sorted(app.runs) == [0, 2]
    assert lookups.asked == [(1, True), (3, False)]


def test_who_was_not_given_what_rang_asks_ahead_again_after_it_was(
    outbox: Any, work: Any, until: Any, app: Any, lookups: Lookups
) -> None:
    outbox.attach("h", "e")

    def snatch() -> None:
        """Another worker reads the entry first."""
        [[_, [[entry_id, _]]]] = outbox.redis.execute_command(
            "XREADGROUP", "GROUP", "h", "another", "STREAMS", KEY, ">"
        )
        outbox.redis.xack(KEY, "h", entry_id)
        lookups.ahead_of = None

    async def scenario(worker: workers.Worker) -> None:
        lookups.ahead_of = snatch
        await until(lambda: listening(worker))
        outbox.publish("e", {"n": 0})
        await until(lambda: not source_of(worker).won)
        for n in (1, 2):
            await until(lambda: listening(worker))
            outbox.publish("e", {"n": n})
            await until(lambda n=n: outbox.count("done") == n and not outbox.pending("e", "h"))

    work(app, scenario)
    assert app.runs == [1, 2]
    assert lookups.asked == [(1, True), (1, False), (1, True)]


def test_an_event_that_has_an_outcome_is_not_run_when_it_was_asked_about_ahead(
    outbox: Any, work: Any, until: Any, app: Any, lookups: Lookups
) -> None:
    outbox.attach("h", "e")
    events = outbox.write("e", {"n": 0})
    outbox.sql.execute(DONE, [events[0][0]])

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: listening(worker))
        outbox.push("e", events)
        await until(lambda: lookups.asked and not outbox.pending("e", "h") and not worker._lanes["h"].active)

    work(app, scenario)
    assert app.runs == []
    assert lookups.asked == [(1, True)]


def test_an_answer_that_grew_old_while_redis_kept_the_read_waiting_is_asked_for_anew(
    outbox: Any, work: Any, until: Any, app: Any, lookups: Lookups, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.attach("h", "e")
    events = outbox.write("e", {"n": 0})
    # Meanwhile another worker, which was given the event on another stream, is done with it.
    lookups.ahead_of = lambda: outbox.sql.execute(DONE, [events[0][0]])
    monkeypatch.setattr(consumer, "AHEAD_FOR", 0.0)

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: listening(worker))
        outbox.push("e", events)
        await until(lambda: len(lookups.asked) == 2 and not outbox.pending("e", "h"))
        await until(lambda: not worker._lanes["h"].active)

    work(app, scenario)
    assert app.runs == []
    assert lookups.asked == [(1, True), (1, False)]


def test_a_stream_that_is_closed_between_ring_and_read_is_asked_about_no_more(
    outbox: Any, work: Any, until: Any, app: Any, lookups: Lookups
) -> None:
    outbox.attach("h", "e")
    events = outbox.write("e", {"n": 0})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: listening(worker))
        outbox.attach("h", "e", attached=False)
        await until(lambda: not worker._lanes["h"].attached)
        # Rings as a hint that the handler was attached; nothing of it is read.
        outbox.push("e", events)
        outbox.push("e", events, key=catch_up_key("outbox", "e", "h"))
        await until(lambda: outbox.count("done") == 1)
        await until(lambda: not worker._lanes["h"].active)
        assert source_of(worker).rung is None

    work(app, scenario)
    assert app.runs == [0]
    assert len(lookups.asked) == 1


def test_questions_that_postgresql_does_not_answer_are_waited_for_and_not_forgotten(
    outbox: Any, work: Any, until: Any, app: Any, lookups: Lookups
) -> None:
    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: listening(worker))
        outbox.publish("e", {"n": 0})
        await until(lambda: outbox.count("done") == 1)
        for n in (1, 2, 3):
            await until(lambda: listening(worker))
            # The very connection that asks.
            lookups_connection = worker._databases[0]._connection
            assert lookups_connection is not None
            outbox.sql.execute("SELECT pg_terminate_backend(%s)", [lookups_connection.info.backend_pid])
            outbox.publish("e", {"n": n})
            await until(lambda n=n: outbox.count("done") == n + 1 and not outbox.pending("e", "h"))
        assert not worker._consumer._admitting

    work(app, scenario)
    assert app.runs == [0, 1, 2, 3]


def test_questions_that_are_never_answered_do_not_outlive_their_worker(
    outbox: Any, until: Any, app: Any, lookups: Lookups, settings: Settings, database_proxy: Any
) -> None:
    proxy, url = database_proxy
    through = settings.model_copy(update={"database_url": SecretStr(url)})
    outbox.attach("h", "e")

    async def main() -> None:
        async with workers.Worker(app, through, grace=0.1) as worker:
            await until(lambda: listening(worker))
            proxy.hold()
            outbox.publish("e", {"n": 0})
            await until(lambda: lookups.asked and worker._consumer._admitting)
        await until(lambda: not worker._consumer._admitting)
        proxy.release()

    asyncio.run(main())
    assert app.runs == []
    assert outbox.pending("e", "h") == 1


def test_prepared_lookups_survive_new_partitions_and_columns(
    outbox: Any, work: Any, until: Any, app: Any, lookups: Lookups
) -> None:
    outbox.attach("h", "e")
    changes = [
        "CREATE TABLE outbox.far PARTITION OF outbox.delivery FOR VALUES FROM ('2999-01-01') TO ('2999-01-02')",
        "ALTER TABLE outbox.delivery ADD COLUMN more text",
        "ALTER TABLE outbox.delivery ALTER COLUMN attempts TYPE bigint",
        "ALTER TABLE outbox.delivery DROP COLUMN more",
        "DROP TABLE outbox.far",
    ]

    async def scenario(worker: workers.Worker) -> None:
        for n in range(len(changes)):
            # As often as it takes until there is a plan to go stale.
            for m in range(7):
                await until(lambda: listening(worker))
                outbox.publish("e", {"n": 10 * n + m})
                await until(lambda n=n, m=m: outbox.count("done") == 7 * n + m + 1)
            connection = worker._databases[0]._connection
            outbox.sql.execute(changes[n])
            assert connection is worker._databases[0]._connection, "the lookups' connection was lost"

    work(app, scenario)
    assert app.runs == [10 * n + m for n in range(len(changes)) for m in range(7)]


# Exchanges


@pytest.fixture
def client(redis_server: Redis) -> Iterator[redis_client.Redis]:
    with redis_client.Redis.from_url(redis_server.url) as made:
        yield made


def in_pool(servers: Any) -> tuple[int, int]:
    """Connections that are free and in use."""
    pool = servers.at(KEY).connection_pool
    return len(pool._available_connections), len(pool._in_use_connections)


def test_an_exchange_gives_errors_as_replies_and_its_connection_back(
    redis_server: Redis, client: redis_client.Redis
) -> None:
    client.set("s", "not a stream")

    async def main() -> None:
        servers = link.connect(redis_server.url)
        for _ in range(3):
            replies = await link.exchange(servers.at(KEY), [("PING",), ("XINFO", "GROUPS", "s"), ("ECHO", "x")])
            assert isinstance(replies[1], ResponseError)
            assert [replies[0], replies[2]] == [b"PONG", b"x"]
            assert in_pool(servers) == (1, 0)
        await servers.aclose()

    asyncio.run(main())
    assert client.info("stats")["total_connections_received"] <= 3


@pytest.mark.parametrize("how", ["cancelled", "timed out", "killed"])
def test_an_exchange_that_ends_in_the_middle_leaves_no_half_read_connection(
    how: str, redis_server: Redis, client: redis_client.Redis, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "TIMEOUT", 0.3 if how == "timed out" else 30.0)

    async def main() -> None:
        servers = link.connect(redis_server.url)
        at = servers.at(KEY)
        # The second reply is still to come.
        half = asyncio.create_task(link.exchange(at, [("ECHO", "first"), ("BLPOP", "list", 0), ("ECHO", "last")]))
        await until(lambda: client.info("clients")["blocked_clients"])
        if how == "cancelled":
            half.cancel()
        elif how == "killed":
            client.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises((asyncio.CancelledError, *link.Unreachable)):
            await half
        assert in_pool(servers) == (1, 0)
        assert await link.exchange(at, [("ECHO", "next")]) == [b"next"]
        await until(lambda: not client.info("clients")["blocked_clients"])
        assert await link.command(at, "ECHO", "more") == b"more"
        assert in_pool(servers) == (1, 0)
        await servers.aclose()

    asyncio.run(main())


def test_a_server_that_became_a_replica_is_left_by_those_who_would_write_to_it(
    redis_server: Redis, client: redis_client.Redis
) -> None:
    async def main() -> None:
        servers = link.connect(redis_server.url)
        at = servers.at(KEY)
        await link.exchange(at, [("PING",)])
        [before] = await link.exchange(at, [("CLIENT", "ID")])
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            client.replicaof("127.0.0.1", nobody.getsockname()[1])
        with pytest.raises(link.Unreachable, match=r"(?i)read only replica"):
            await link.exchange(at, [("XGROUP", "CREATE", KEY, "h", "0", "MKSTREAM"), ("XINFO", "GROUPS", KEY)])
        # The address may lead to another server by now.
        [after] = await link.exchange(at, [("CLIENT", "ID")])
        assert after != before
        assert in_pool(servers) == (1, 0)
        await servers.aclose()

    asyncio.run(main())


def test_a_worker_leaves_a_demoted_primary_for_its_successor(
    outbox: Any,
    until: Any,
    app: Any,
    settings: Settings,
    redis_server: Redis,
    client: redis_client.Redis,
    start_redis: Callable[..., Redis],
    open_proxy: Callable[..., Any],
) -> None:
    successor = start_redis(options={"repl-diskless-sync-delay": "0"})
    client.config_set("repl-diskless-sync-delay", 0)
    proxy = open_proxy(redis_server.port)
    there = settings.model_copy(update={"redis_url": SecretStr(f"redis://127.0.0.1:{proxy.port}/0")})
    outbox.attach("h", "e")

    async def main() -> None:
        async with workers.Worker(app, there) as worker:
            outbox.publish("e", {"n": 0})
            await until(lambda: outbox.count("done") == 1 and not outbox.pending("e", "h"))
            await until(lambda: listening(worker))
            with redis_client.Redis.from_url(successor.url) as new:
                new.replicaof("127.0.0.1", redis_server.port)
                await until(lambda: new.info("replication")["master_link_status"] == "up")
                new.replicaof("NO", "ONE")
                # Every connection to the old one stays open.
                client.replicaof("127.0.0.1", successor.port)
                proxy.target = successor.port
                outbox.redis = new
                outbox.publish("e", {"n": 1})
                await until(lambda: outbox.count("done") == 2 and not outbox.pending("e", "h"))
                outbox.publish("e", {"n": 2})
                await until(lambda: outbox.count("done") == 3 and not outbox.pending("e", "h"))

    asyncio.run(main())
    assert app.runs == [0, 1, 2]
