"""Plain handlers: reading, binding, outcomes before acknowledgement."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

import workers
from outbox.errors import ConfigurationError, PrefixTakenError
from outbox.names import catch_up_key, owner_key, stream_key
from outbox.settings import Settings

pytestmark = pytest.mark.oldest


def test_every_event_is_handled_recorded_and_acknowledged(outbox: Any, work: Any, until: Any) -> None:
    app, seen = workers.App(), []

    @app.handler("signed_up")
    async def welcome(user_id: int, event: workers.Event, context: workers.Context) -> None:
        seen.append((user_id, event.payload["user_id"], str(event.id), context.attempt, context.handler))

    outbox.attach("welcome", "signed_up")
    ids = outbox.publish("signed_up", *({"user_id": n} for n in range(300)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 300)
        await until(lambda: outbox.pending("signed_up", "welcome") == 0)

    work(app, scenario)
    assert sorted(seen) == [(n, n, ids[n], 1, "welcome") for n in range(300)]


def test_a_new_handler_is_registered_and_reads_its_catch_up_stream_only(outbox: Any, work: Any, until: Any) -> None:
    app, seen = workers.App(prefix="shop"), []

    @app.handler("signed_up")
    async def welcome(n: int) -> None:
        seen.append(n)

    async def scenario(worker: workers.Worker) -> None:
        row = outbox.one(
            "SELECT event_name, attached, done_tick, fed_tick FROM outbox.handler WHERE name = 'shop.welcome'"
        )
        assert row == ("signed_up", False, None, None)
        outbox.publish("signed_up", {"n": 1})
        outbox.push(
            "signed_up", outbox.write("signed_up", {"n": 2}), key=catch_up_key("outbox", "signed_up", "shop.welcome")
        )
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    assert seen == [2]


def test_a_new_handler_says_where_it_wants_to_begin(outbox: Any, work: Any) -> None:
    app = workers.App()
    moment = datetime(2026, 1, 31, 12, 30, tzinfo=timezone(timedelta(hours=2)))

    async def react() -> None: ...

    for name, start in (("whole", "beginning"), ("later", "now"), ("since", moment), ("usual", None)):
        app.handler("signed_up", name=name, start=start)(react)

    async def scenario(worker: workers.Worker) -> None:
        for name, found in (
            ("whole", "-infinity"),
            ("later", "infinity"),
            ("since", "2026-01-31 10:30:00"),
            ("usual", None),
        ):
            assert (
                outbox.one("SELECT (start_at AT TIME ZONE 'UTC')::text FROM outbox.handler WHERE name = %s", name)
                == found
            )

    work(app, scenario)


def test_a_handler_that_becomes_attached_reads_the_main_stream_at_once(outbox: Any, work: Any, until: Any) -> None:
    app, seen = workers.App(), []

    @app.handler("e")
    async def h(n: int) -> None:
        seen.append(n)

    async def scenario(worker: workers.Worker) -> None:
        outbox.attach("h", "e")
        outbox.publish("e", {"n": 1})
        await until(lambda: seen == [1])
        outbox.publish("e", {"n": 2})
        await until(lambda: outbox.count("done") == 2)

    work(app, scenario)


def test_two_handlers_of_one_event_each_get_it(outbox: Any, work: Any, until: Any) -> None:
    app, seen = workers.App(), []

    @app.handler("e")
    async def first(n: int) -> None:
        seen.append(("first", n))

    @app.handler("e")
    async def second(n: int) -> None:
        seen.append(("second", n))

    outbox.attach("first", "e")
    outbox.attach("second", "e")

    async def scenario(worker: workers.Worker) -> None:
        for n in range(20):
            outbox.publish("e", {"n": n})
            await until(lambda n=n: outbox.count("done") == 2 * (n + 1))

    work(app, scenario)
    assert len(seen) == len(set(seen)) == 40


def test_an_event_with_an_outcome_is_acknowledged_unrun(outbox: Any, work: Any, until: Any) -> None:
    app, seen = workers.App(), []

    @app.handler("e")
    async def h(n: int) -> None:
        seen.append(n)

    outbox.attach("h", "e")
    events = outbox.write("e", {"n": 1}, {"n": 2})
    outbox.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
        " SELECT id, 'h', created_at, 'done', 1 FROM outbox.event WHERE id = %s",
        [events[0][0]],
    )
    outbox.push("e", events)

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 2 and outbox.pending("e", "h") == 0)

    work(app, scenario)
    assert seen == [2]


def test_the_same_event_on_both_streams_runs_once(outbox: Any, work: Any, until: Any) -> None:
    app, seen = workers.App(), []

    @app.handler("e")
    async def h(n: int) -> None:
        seen.append(n)
        await asyncio.sleep(0.05)

    outbox.attach("h", "e")
    events = outbox.write("e", *({"n": n} for n in range(50)))
    outbox.push("e", events)
    outbox.push("e", events, key=catch_up_key("outbox", "e", "h"))

    async def scenario(worker: workers.Worker) -> None:
        catch_up = catch_up_key("outbox", "e", "h")
        await until(lambda: outbox.count("done") == 50 and outbox.pending("e", "h") == 0)
        await until(lambda: outbox.redis.xpending(catch_up, "h")["pending"] == 0)

    work(app, scenario)
    assert sorted(seen) == list(range(50))


def test_a_plain_def_runs_in_a_thread(outbox: Any, work: Any, until: Any) -> None:
    app, threads = workers.App(), []

    @app.handler("e", concurrency=3)
    def h(n: int) -> None:
        threads.append(threading.current_thread().name)

    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(100)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 100)

    work(app, scenario)
    assert set(threads) == {"handler h"}


def test_no_more_run_at_once_than_concurrency_allows(outbox: Any, work: Any, until: Any) -> None:
    app = workers.App()
    now = most = 0

    @app.handler("e", concurrency=7)
    async def h() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1

    outbox.attach("h", "e")
    outbox.publish("e", *({} for _ in range(100)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 100)

    work(app, scenario)
    assert most == 7


def test_context_variables_of_one_run_never_reach_another(outbox: Any, work: Any, until: Any) -> None:
    app, leaked = workers.App(), []
    tenant: contextvars.ContextVar[int | None] = contextvars.ContextVar("tenant", default=None)

    @app.handler("e", concurrency=2)
    async def h(n: int) -> None:
        leaked.append(tenant.get())
        tenant.set(n)

    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(50)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 50)

    work(app, scenario)
    assert set(leaked) == {None}


def test_a_slow_handler_delays_only_itself(outbox: Any, work: Any, until: Any) -> None:
    app, gate = workers.App(), asyncio.Event()

    @app.handler("e", concurrency=2)
    async def slow() -> None:
        await gate.wait()

    @app.handler("e")
    async def quick() -> None: ...

    outbox.attach("slow", "e")
    outbox.attach("quick", "e")
    outbox.publish("e", *({} for _ in range(300)))

    async def scenario(worker: workers.Worker) -> None:
        done = "SELECT count(*) FROM outbox.delivery WHERE handler = %s"
        await until(lambda: outbox.one(done, "quick") == 300)
        assert outbox.one(done, "slow") == 0
        gate.set()
        await until(lambda: outbox.one(done, "slow") == 300)

    work(app, scenario)


def test_the_payload_arrives_exactly(outbox: Any, work: Any, until: Any) -> None:
    app, seen = workers.App(), []

    @app.handler("e")
    async def h(value: Any) -> None:
        seen.append(value)

    outbox.attach("h", "e")
    values = [2**70, -0.0, 1e16, "ü\U0001f600\u2028", {"b": 1, "a": [None, True]}, 0.1]
    outbox.publish("e", *({"value": value} for value in values))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == len(values))

    work(app, scenario)
    assert list(map(repr, seen)) == list(map(repr, values))


def test_an_entry_that_is_none_of_ours_blocks_nobody(outbox: Any, work: Any, until: Any) -> None:
    app, seen = workers.App(), []

    @app.handler("e")
    async def h(n: int) -> None:
        seen.append(n)

    outbox.attach("h", "e")
    outbox.redis.xadd(stream_key("outbox", "e"), {"what": "ever"}, id="5-1")
    outbox.redis.xadd(
        stream_key("outbox", "e"),
        {"id": "x'; --", "name": "e", "key": "", "payload": "", "headers": "", "at": "1"},
        id="5-2",
    )
    outbox.publish("e", {"n": 1})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1 and outbox.pending("e", "h") == 0)

    work(app, scenario)
    assert seen == [1]


def test_an_event_starts_within_milliseconds_of_its_entry(outbox: Any, work: Any, until: Any) -> None:
    app, took = workers.App(), []
    pushed = 0.0

    @app.handler("e")
    async def h() -> None:
        took.append(time.monotonic() - pushed)

    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        nonlocal pushed
        for n in range(30):
            events = outbox.write("e", {})
            pushed = time.monotonic()
            outbox.push("e", events)
            await until(lambda n=n: len(took) == n + 1)

    work(app, scenario)
    # Far above the usual, far below every poll interval: the doorbell rang each time.
    assert sorted(took)[15] < 0.1


@pytest.mark.parametrize("wrong", ["another database", "no handlers", "another event"])
def test_a_worker_that_cannot_be_right_refuses_to_start(wrong: str, outbox: Any, settings: Settings) -> None:
    app = workers.App()
    expected: type[Exception] = ConfigurationError
    if wrong != "no handlers":

        @app.handler("e")
        async def h() -> None: ...

    if wrong == "another database":
        outbox.redis.set(owner_key("outbox"), "123/other/outbox")
        expected = PrefixTakenError
    elif wrong == "another event":
        outbox.attach("h", "f")

    async def main() -> None:
        async with workers.Worker(app, settings) as worker:
            await worker.run()

    with pytest.raises(expected):
        asyncio.run(main())


def test_stopping_twice_or_before_the_start_is_fine(settings: Settings) -> None:
    app = workers.App()

    @app.handler("e")
    async def h() -> None: ...

    async def main() -> None:
        idle = workers.Worker(app, settings)
        await idle.stop()
        worker = workers.Worker(app, settings)
        await worker.start()
        await worker.stop()
        await worker.stop()

    asyncio.run(main())
