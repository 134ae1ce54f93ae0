"""The app's lifespan: one per process, around everything that runs, and its value in handlers' hands by its type."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

import workers
from outbox.errors import ConfigurationError
from outbox.settings import Settings
from workers import lifespan as lifespans


class Pool:
    def __init__(self) -> None:
        self.used: list[int] = []
        self.open = True


class Bank: ...


@dataclass
class Everything:
    pool: Pool
    bank: Bank


def test_handlers_of_every_kind_get_the_value_by_its_type(outbox: Any, work: Any, until: Any) -> None:
    made: list[Pool] = []

    @asynccontextmanager
    async def lifespan(app: workers.App) -> AsyncIterator[Pool]:
        made.append(Pool())
        yield made[0]
        made[0].open = False

    app = workers.App(lifespan=lifespan)

    @app.handler("e")
    async def on_the_loop(n: int, whatever: Pool) -> None:
        assert whatever.open
        whatever.used.append(n)

    @app.handler("e")
    def in_a_thread(n: int, its_name: Pool) -> None:
        assert its_name.open
        its_name.used.append(10 + n)

    for handler in ("on_the_loop", "in_a_thread"):
        outbox.attach(handler, "e")
    outbox.publish("e", {"n": 1}, {"n": 2})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 4)

    work(app, scenario)
    assert len(made) == 1
    assert sorted(made[0].used) == [1, 2, 11, 12]
    assert not made[0].open


def test_several_resources_are_the_fields_of_a_dataclass(outbox: Any, work: Any, until: Any) -> None:
    seen: list[Any] = []
    given = Everything(Pool(), Bank())

    @asynccontextmanager
    async def lifespan(app: workers.App) -> AsyncIterator[Everything]:
        yield given

    app = workers.App(lifespan=lifespan)

    @app.handler("e")
    async def h(bank: Bank, pool: Pool, everything: Everything) -> None:
        seen.extend([everything, pool, bank])

    outbox.attach("h", "e")
    outbox.publish("e", {"pool": "the payload's", "bank": 1})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    assert seen == [given, given.pool, given.bank]


def test_it_is_entered_before_the_first_run_and_left_after_the_last(outbox: Any, work: Any, until: Any) -> None:
    happened: list[str] = []
    running, stopping = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def lifespan(app: workers.App) -> AsyncIterator[None]:
        await asyncio.sleep(0.1)
        happened.append("entered")
        yield
        happened.append("left")

    app = workers.App(lifespan=lifespan)

    @app.handler("e")
    async def h() -> None:
        happened.append("begun")
        running.set()
        await stopping.wait()
        happened.append("ended")

    outbox.attach("h", "e")
    outbox.publish("e", {})

    async def scenario(worker: workers.Worker) -> None:
        await running.wait()
        worker.request_stop()
        stopping.set()

    work(app, scenario)
    assert happened == ["entered", "begun", "ended", "left"]
    assert outbox.count("done") == 1


def test_a_task_group_may_live_in_it(outbox: Any, work: Any, until: Any) -> None:
    @asynccontextmanager
    async def lifespan(app: workers.App) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            yield
            group.cancel_scope.cancel()

    app = workers.App(lifespan=lifespan)

    @app.handler("e")
    async def h() -> None: ...

    outbox.attach("h", "e")
    outbox.publish("e", {})

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)


def app_with(lifespan: Any) -> workers.App:
    app = workers.App(lifespan=lifespan)

    @app.handler("e")
    async def h() -> None: ...

    return app


async def served(app: workers.App, settings: Settings) -> None:
    async with workers.Worker(app, settings) as worker:
        await worker.run()


def test_a_lifespan_that_fails_to_enter_registers_nothing(outbox: Any, settings: Settings) -> None:
    @asynccontextmanager
    async def lifespan(app: workers.App) -> AsyncIterator[None]:
        raise RuntimeError("no pool today")
        yield

    with pytest.raises(RuntimeError, match="no pool today"):
        asyncio.run(served(app_with(lifespan), settings))
    assert outbox.one("SELECT count(*) FROM outbox.handler") == 0


def test_it_is_left_when_the_worker_is_refused_after_it_was_entered(outbox: Any, settings: Settings) -> None:
    happened: list[str] = []

    @asynccontextmanager
    async def lifespan(app: workers.App) -> AsyncIterator[None]:
        happened.append("entered")
        yield
        happened.append("left")

    outbox.attach("h", "another_event")
    with pytest.raises(ConfigurationError, match="another_event"):
        asyncio.run(served(app_with(lifespan), settings))
    assert happened == ["entered", "left"]


def test_it_is_left_when_the_worker_fails(outbox: Any, settings: Settings) -> None:
    happened: list[str] = []

    @asynccontextmanager
    async def lifespan(app: workers.App) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(fail)
            try:
                yield
            finally:
                happened.append("left")

    async def fail() -> None:
        raise RuntimeError("its own task failed")

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(served(app_with(lifespan), settings))
    assert caught.group_contains(RuntimeError, match="its own task failed")
    assert happened == ["left"]


def test_a_value_that_is_not_what_was_declared_is_refused_with_who_asked(outbox: Any, settings: Settings) -> None:
    @asynccontextmanager
    async def lifespan(app: workers.App) -> AsyncIterator[Everything]:
        yield Everything(Pool(), None)  # type: ignore[arg-type]

    app = workers.App(lifespan=lifespan)

    @app.handler("e")
    async def charge(pool: Pool, its_bank: Bank) -> None: ...

    sentence = (
        r"handler 'charge' asks for Bank \(parameter 'its_bank'\), but the lifespan gave None in its field 'bank'"
    )
    with pytest.raises(ConfigurationError, match=sentence):
        asyncio.run(served(app, settings))


def test_cleaning_up_may_not_take_for_ever(outbox: Any, work: Any, until: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    monkeypatch.setattr(lifespans, "LEAVE_WITHIN", 0.05)

    @asynccontextmanager
    async def lifespan(app: workers.App) -> AsyncIterator[None]:
        yield
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            happened.append("cancelled")
            raise

    async def scenario(worker: workers.Worker) -> None: ...

    work(app_with(lifespan), scenario)
    assert happened == ["cancelled"]


SOURCE = """
import pathlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
import workers

@asynccontextmanager
async def lifespan(app: workers.App) -> AsyncIterator[None]:
    yield
    pathlib.Path("left").touch()

app = workers.App(lifespan=lifespan)

@app.handler("e")
async def h() -> None: ...
"""


def test_a_process_that_is_told_to_stop_leaves_it(start: Any, wait_for: Any, tmp_path: Any) -> None:
    process = start(SOURCE)
    wait_for(process.started)
    assert not (tmp_path / "left").exists()
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert (tmp_path / "left").exists()
