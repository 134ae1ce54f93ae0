"""Handlers that are held back, and events that are cancelled, as a worker meets them."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import workers
from outbox import admin

pytestmark = pytest.mark.oldest


@pytest.mark.parametrize("what", ["handler", "event"])
def test_a_paused_handler_rests_until_it_is_resumed(outbox: Any, work: Any, until: Any, what: Any) -> None:
    app, seen = workers.App(), []

    @app.handler("e")
    async def h(n: int) -> None:
        seen.append(n)

    @app.handler("f")
    async def other(n: int) -> None: ...

    outbox.attach("h", "e")
    outbox.attach("other", "f")
    name = "h" if what == "handler" else "e"
    admin.pause(outbox.sql, what, name)

    async def scenario(worker: workers.Worker) -> None:
        outbox.publish("e", {"n": 1})
        outbox.publish("f", {"n": 1})
        await until(lambda: outbox.count("done") == 1)
        assert seen == []
        admin.resume(outbox.sql, what, name)
        await until(lambda: seen == [1])

    work(app, scenario)


def test_what_a_paused_handler_had_fetched_waits_in_postgresql_and_may_be_cancelled(
    outbox: Any, work: Any, until: Any
) -> None:
    app, seen = workers.App(), []
    release = asyncio.Event()

    @app.handler("e")
    async def h(n: int) -> None:
        seen.append(n)
        await release.wait()

    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        ids = outbox.publish("e", *({"n": n} for n in range(8)))
        await until(lambda: seen == [0])
        admin.pause(outbox.sql, "handler", "h")
        await until(lambda: outbox.count("retrying") == 7 and outbox.pending("e", "h") == 1)
        attempts = outbox.sql.execute("SELECT DISTINCT attempts, error FROM outbox.delivery").fetchall()
        assert attempts == [(0, None)]
        release.set()
        await until(lambda: outbox.count("done") == 1)
        assert seen == [0]
        for id in ids[4:]:
            assert admin.cancel(outbox.sql, UUID(id)).cancelled == ("h",)
        admin.resume(outbox.sql, "handler", "h")
        await until(lambda: outbox.count("done") == 4 and outbox.pending("e", "h") == 0)
        assert sorted(seen) == [0, 1, 2, 3]
        assert [outbox.states()[id] for id in ids[4:]] == ["cancelled"] * 4

    # All eight are fetched, and one may run.
    work(app, scenario, total_concurrency=1)


def test_an_event_that_was_cancelled_before_it_was_read_is_acknowledged_and_never_run(
    outbox: Any, work: Any, until: Any
) -> None:
    app, seen = workers.App(), []

    @app.handler("e")
    async def h(n: int) -> None:
        seen.append(n)

    outbox.attach("h", "e")
    events = outbox.write("e", {"n": 1}, {"n": 2})
    admin.cancel(outbox.sql, UUID(events[0][0]))

    async def scenario(worker: workers.Worker) -> None:
        outbox.push("e", events)
        await until(lambda: outbox.count("done") == 1 and outbox.pending("e", "h") == 0)
        assert seen == [2]

    work(app, scenario)


def test_what_a_plain_handler_did_although_it_was_cancelled_meanwhile_counts_as_done(
    outbox: Any, work: Any, until: Any
) -> None:
    app = workers.App()
    began, release = asyncio.Event(), asyncio.Event()

    @app.handler("e")
    async def h() -> None:
        began.set()
        await release.wait()

    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        (id,) = outbox.publish("e", {})
        await began.wait()
        assert admin.cancel(outbox.sql, UUID(id)).cancelled == ("h",)
        release.set()
        await until(lambda: outbox.states() == {id: "done"})

    work(app, scenario)


def test_what_a_transactional_handler_did_although_it_was_cancelled_meanwhile_is_rolled_back(
    outbox: Any, work: Any, until: Any
) -> None:
    app = workers.App()
    began, release = asyncio.Event(), asyncio.Event()
    outbox.sql.execute("CREATE TABLE effect ()")

    @app.handler("e")
    async def h(session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO effect DEFAULT VALUES"))
        began.set()
        await release.wait()

    outbox.attach("h", "e")

    async def scenario(worker: workers.Worker) -> None:
        (id,) = outbox.publish("e", {})
        await began.wait()
        assert admin.cancel(outbox.sql, UUID(id)).cancelled == ("h",)
        release.set()
        await until(lambda: outbox.pending("e", "h") == 0)
        assert outbox.states() == {id: "cancelled"}
        assert outbox.one("SELECT count(*) FROM effect") == 0

    work(app, scenario)
