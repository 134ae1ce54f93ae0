"""What was added is run to its end on real servers, or what is open is named."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import outbox
from console.servers import free_port
from outbox.settings import Settings
from outbox_testing import Drained, DrainTimeoutError, drain, drain_sync
from workers import App, Backoff, Context, Event, Reject, RetryLater, Snooze

Db = psycopg.Connection[Any]
Add = Callable[..., None]


def shop() -> App:
    app = App()

    @app.handler("ordered")
    async def bill(n: int, session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO effect VALUES ('bill', :n)"), {"n": n})
        outbox.add(session, "billed", n=n)

    @app.handler("ordered", backoff=Backoff(initial=3600), max_attempts=3)
    async def reserve(n: int, context: Context) -> None:
        if n == 2:
            raise Reject("sold out")
        if n == 3 and context.attempt < 3:
            raise RetryLater(3600)

    @app.handler("billed")
    def note(n: int) -> None: ...

    return app


def test_everything_comes_to_its_end_also_what_handlers_add(
    outbox_settings: Settings, db: Db, add: Add, finish: Any
) -> None:
    for n in (1, 2, 3):
        add("ordered", n=n)
    add("unheard", n=1)
    drained = finish(drain, drain_sync)(shop(), outbox_settings, retry_at_once=True)
    assert drained.done == {"bill": 3, "note": 3, "reserve": 2}
    assert drained.dead == {"reserve": 1}
    assert drained.retried == {"reserve": 2}
    states = db.execute("SELECT state, count(*) FROM outbox.delivery GROUP BY state").fetchall()
    assert dict(states) == {"done": 8, "dead": 1}
    assert not [each for each in threading.enumerate() if each.name.startswith("drain: ")]


def test_a_second_drain_counts_what_came_since(outbox_settings: Settings, db: Db, add: Add) -> None:
    app = shop()
    add("ordered", n=1)
    assert drain_sync(app, outbox_settings).done == {"bill": 1, "note": 1, "reserve": 1}
    assert drain_sync(app, outbox_settings) == Drained(*(type(drain_sync(app, outbox_settings).done)(),) * 3)
    add("billed", n=2)
    assert drain_sync(app, outbox_settings).done == {"note": 1}


def test_what_is_from_before_a_handlers_beginning_is_not_waited_for(
    outbox_settings: Settings, db: Db, add: Add
) -> None:
    add("ordered", n=1)
    drain_sync(shop(), outbox_settings)
    app = shop()

    @app.handler("ordered")
    async def late(n: int) -> None: ...

    add("billed", n=2)
    assert drain_sync(app, outbox_settings).done == {"note": 1}
    add("ordered", n=2)
    assert drain_sync(app, outbox_settings).done["late"] == 1


def test_a_retry_at_once_waits_neither_for_backoff_nor_for_a_snooze(outbox_settings: Settings, add: Add) -> None:
    app = App()
    ways = iter([ValueError("backoff"), Snooze(3600), RetryLater(3600)])

    @app.handler("ordered", backoff=Backoff(initial=3600))
    async def restless(event: Event) -> None:
        if (error := next(ways, None)) is not None:
            raise error

    add("ordered")
    drained = drain_sync(app, outbox_settings, retry_at_once=True)
    assert (drained.done, drained.retried) == ({"restless": 1}, {"restless": 2})


def test_what_is_open_when_the_time_is_up_is_named(outbox_settings: Settings, db: Db, add: Add) -> None:
    app = App()

    @app.handler("ordered", backoff=Backoff(initial=3600, jitter=0))
    async def failing(n: int) -> None:
        raise ValueError("no paper")

    @app.handler("ordered")
    async def hanging(n: int) -> None:
        await asyncio.sleep(3600)

    add("ordered", n=1, secret="s3cret")
    with pytest.raises(DrainTimeoutError) as failure:
        drain_sync(app, outbox_settings, timeout=2)
    event = db.execute("SELECT id::text FROM outbox.event").fetchone()
    assert event is not None
    head, first, second = str(failure.value).splitlines()
    assert head == "not everything came to its end within 2 s; open are:"
    assert first.startswith(f"  failing: event ordered {event[0]}, is retried in 35")
    assert "after 1 failed attempt: ValueError: no paper" in first
    assert second.startswith(f"  hanging: event ordered {event[0]}, ")
    assert "s3cret" not in str(failure.value)


def test_a_redis_that_does_not_answer_ends_with_the_time(outbox_settings: Settings, db: Db, add: Add) -> None:
    away = outbox_settings.model_copy(
        update={"redis_url": Settings(redis_url=f"redis://127.0.0.1:{free_port()}").redis_url}
    )
    add("ordered", n=1)
    with pytest.raises(DrainTimeoutError, match="the worker did not start within 1 s: do PostgreSQL and Redis answer"):
        drain_sync(shop(), away, timeout=1)


def test_what_makes_a_worker_refuse_is_raised(outbox_settings: Settings, empty_database_url: str) -> None:
    empty = outbox_settings.model_copy(update={"database_url": Settings(database_url=empty_database_url).database_url})
    with pytest.raises(outbox.OutboxError, match="outbox migrate"):
        drain_sync(shop(), empty)


def test_a_run_that_is_never_repeated_is_waited_for(outbox_settings: Settings, add: Add) -> None:
    """It is dead in PostgreSQL for as long as it runs."""
    app, looks = App(), list[Any]()

    @app.handler("ordered", at_most_once=True)
    async def charge(n: int) -> None:
        ends = asyncio.get_running_loop().time() + 0.3
        with psycopg.connect(outbox_settings.libpq_url(), autocommit=True) as connection:
            # For as long as a drain that took it for dead would need to look many times.
            while asyncio.get_running_loop().time() < ends:
                looks.append(connection.execute("SELECT state FROM outbox.delivery ORDER BY updated_at").fetchall()[-1])
                await asyncio.sleep(0.05)
        if n == 2:
            raise ValueError("declined")

    add("ordered", n=1)
    assert drain_sync(app, outbox_settings) == Drained(Counter(charge=1), Counter(), Counter())
    assert set(looks) == {("dead",)}
    add("ordered", n=2)
    assert drain_sync(app, outbox_settings) == Drained(Counter(), Counter(charge=1), Counter())


def test_handlers_share_the_tests_event_loop(outbox_settings: Settings, add: Add) -> None:
    app = App()
    loops: list[asyncio.AbstractEventLoop] = []

    @app.handler("ordered")
    async def note() -> None:
        loops.append(asyncio.get_running_loop())

    async def main() -> None:
        add("ordered")
        await drain(app, outbox_settings)
        assert loops == [asyncio.get_running_loop()]

    asyncio.run(main())


def test_what_somebody_must_mend_is_raised_at_once(outbox_settings: Settings, db: Db, add: Add, finish: Any) -> None:
    add("ordered", n=1)
    db.execute("UPDATE outbox.migration SET version = -version WHERE version > 1")
    with pytest.raises(outbox.OutboxError, match="run `outbox migrate`") as raised:
        finish(drain, drain_sync)(shop(), outbox_settings)
    assert not isinstance(raised.value, DrainTimeoutError)
