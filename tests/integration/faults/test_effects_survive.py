"""Relays and workers are killed and Redis forgets, at any moment: in the end every event is done, once in effect.

Writers go on meanwhile. Nobody lifts a hand but to start a program again.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import psycopg
import pytest
import redis

from console.servers import Redis
from outbox.names import catch_up_key, stream_key
from outbox.settings import Settings

pytestmark = pytest.mark.slow

WRITERS = 2

Loss: TypeAlias = Callable[[Any, Redis], None]


class Business:
    """Writers of orders, each transaction with its row and its event; some are rolled back."""

    def __init__(self, settings: Settings, chance: random.Random) -> None:
        self.url = settings.libpq_url()
        self.over = threading.Event()
        self.ordered: list[str] = []
        self.failures: list[BaseException] = []
        self.threads = [
            threading.Thread(target=self.write, args=(random.Random(chance.random()),), daemon=True)
            for _ in range(WRITERS)
        ]
        for thread in self.threads:
            thread.start()

    def write(self, chance: random.Random) -> None:
        try:
            with psycopg.connect(self.url) as connection:
                while not self.over.is_set():
                    self.order(connection, chance)
        except BaseException as error:
            self.failures.append(error)

    def order(self, connection: psycopg.Connection, chance: random.Random) -> None:
        """One to three events in a transaction."""
        said = []
        for _ in range(chance.choice([1, 1, 1, 3])):
            row = connection.execute(
                "WITH made AS (INSERT INTO ordered (n) VALUES (%(n)s) RETURNING id)"
                " INSERT INTO outbox.event (id, name, payload) SELECT id, 'ordered', %(payload)s FROM made"
                " RETURNING id::text",
                {"n": (n := chance.randrange(1000)), "payload": json.dumps({"n": n})},
            ).fetchone()
            assert row is not None
            said.append(row[0])
            time.sleep(chance.random() * 0.08)
        if chance.random() < 0.15:
            connection.rollback()
            return
        connection.commit()
        self.ordered += said

    def close(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(20)
        assert not self.failures


@pytest.fixture
def stage(cast: Any) -> Any:
    cast.sql.execute("CREATE TABLE ordered (id uuid PRIMARY KEY DEFAULT outbox.uuidv7(), n integer NOT NULL)")
    # Without any unique key, so that an effect that is applied twice shows.
    cast.sql.execute("CREATE TABLE effect (handler text NOT NULL, event_id uuid NOT NULL)")
    return cast


@pytest.fixture
def business(stage: Any, chance: random.Random) -> Iterator[Business]:
    business = Business(stage.settings, chance)
    yield business
    business.over.set()


def check(cast: Any, business: Business, differences: Callable[..., dict[str, list[Any]]]) -> None:
    """Wait until all is done, and compare what was committed with what came of it."""
    business.close()
    cast.await_done()
    ordered = business.ordered
    assert ordered
    rows = cast.sql.execute("SELECT id::text FROM ordered").fetchall()
    assert differences(ordered, [row[0] for row in rows]) == {}
    for handler in ("book", "charge", "ship"):
        rows = cast.sql.execute("SELECT event_id::text FROM effect WHERE handler = %s", [handler]).fetchall()
        assert differences(ordered, [row[0] for row in rows]) == {}, handler
    followed = cast.sql.execute("SELECT payload->>'ordered' FROM outbox.event WHERE name = 'booked'").fetchall()
    assert differences(ordered, [row[0] for row in followed]) == {}
    assert differences(ordered, set(cast.effects.read_text().split())) == {}
    assert cast.one("SELECT count(*) FROM outbox.delivery WHERE state <> 'done'") == 0
    assert cast.one("SELECT count(*) FROM outbox.dead_letter") == 0


def await_progress(cast: Any, business: Business, chance: random.Random) -> None:
    """Let a random number of deliveries pass, and then a random moment."""
    count = "SELECT count(*) FROM outbox.delivery"
    goal = cast.one(count) + chance.randrange(120)
    cast.wait_for(lambda: cast.one(count) >= goal or business.failures, "deliveries")
    assert not business.failures
    time.sleep(chance.random() * 0.05)


def kill_one(cast: Any, victims: list[Any], chance: random.Random) -> None:
    """Kill a relay (the first two) or a worker, and start another one at once or a moment later."""
    place = chance.randrange(len(victims))
    victims[place].kill()
    if chance.random() < 0.3:
        time.sleep(chance.random() * 0.5)
    victims[place] = cast.relay() if place < 2 else cast.worker()


def test_effects_survive_kills_of_relays_and_workers(
    stage: Any, business: Business, chance: random.Random, differences: Any, turn: int
) -> None:
    victims = [stage.relay(), stage.relay(), stage.worker(), stage.worker()]
    for _ in range(chance.randint(3, 6)):
        await_progress(stage, business, chance)
        kill_one(stage, victims, chance)
    check(stage, business, differences)


def test_a_killed_leader_and_worker_are_replaced_by_those_that_are_there(
    stage: Any, business: Business, chance: random.Random, differences: Any
) -> None:
    relay, worker = stage.relay(), stage.worker(by_command_line=True)
    stage.await_attached()
    stage.relay()
    stage.worker(by_command_line=True)
    for victim in (relay, worker):
        await_progress(stage, business, chance)
        victim.kill()
    await_progress(stage, business, chance)
    check(stage, business, differences)


def flush(cast: Any, server: Redis) -> None:
    """FLUSHALL."""
    cast.redis.flushall()


def restart(cast: Any, server: Redis) -> None:
    """A server without persistence is killed and started again."""
    server.kill()
    server.start()


def delete_streams(cast: Any, server: Redis) -> None:
    """The main stream of one event name is deleted, and one catch-up stream."""
    cast.redis.delete(stream_key("outbox", "ordered"))
    cast.redis.delete(catch_up_key("outbox", "booked", "ship"))


def destroy_groups(cast: Any, server: Redis) -> None:
    """Consumer groups vanish, with what was pending in them."""
    for handler in ("notify", "book"):
        with contextlib.suppress(redis.ResponseError):
            cast.redis.xgroup_destroy(stream_key("outbox", "ordered"), handler)


def forget_scripts(cast: Any, server: Redis) -> None:
    """SCRIPT FLUSH."""
    cast.redis.script_flush()


LOSSES = (flush, restart, delete_streams, destroy_groups, forget_scripts)


@pytest.mark.oldest
def test_effects_survive_what_redis_forgets(
    stage: Any, business: Business, chance: random.Random, differences: Any, redis_server: Redis
) -> None:
    stage.relay()
    stage.worker()
    stage.worker()
    # Twice each: every one follows another at some time, and itself at times.
    for loss in chance.sample(LOSSES * 2, 2 * len(LOSSES)):
        print(loss.__name__)  # noqa: T201
        await_progress(stage, business, chance)
        loss(stage, redis_server)
    check(stage, business, differences)
    stage.await_attached()


@pytest.mark.oldest
def test_effects_survive_kills_and_losses_together(
    stage: Any, business: Business, chance: random.Random, differences: Any, redis_server: Redis, turn: int
) -> None:
    victims = [stage.relay(), stage.relay(), stage.worker(), stage.worker()]
    for _ in range(chance.randint(3, 6)):
        await_progress(stage, business, chance)
        if chance.random() < 0.5:
            chance.choice(LOSSES)(stage, redis_server)
        else:
            kill_one(stage, victims, chance)
    check(stage, business, differences)
    stage.await_attached()
