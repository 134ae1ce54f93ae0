"""What docs/deploying.md says of code and events of different versions, on real servers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import outbox
from outbox import admin
from outbox.settings import Settings
from outbox_testing import DrainTimeoutError, drain, drain_sync
from workers import App, Backoff, RetryLater, Worker

Add = Callable[..., None]
SOON = Backoff(initial=0.01, jitter=0)


@pytest.fixture
def add(outbox_settings: Settings) -> Add:
    engine = create_engine(outbox_settings.sqlalchemy_url())

    def write(name: str, **payload: Any) -> None:
        with Session(engine) as session:
            outbox.add(session, name, **payload)
            session.commit()
        engine.dispose()

    return write


@pytest.fixture
def sql(outbox_settings: Settings) -> Any:
    with psycopg.connect(outbox_settings.libpq_url(), autocommit=True) as connection:
        yield connection.execute


def app_with(*handlers: Any, event: str = "ordered", **options: Any) -> App:
    app = App()
    for handler in handlers:
        app.handler(event, backoff=SOON, **options)(handler)
    return app


def test_an_event_that_nobody_handles_yet_waits_for_its_first_handler(outbox_settings: Settings, add: Add) -> None:
    seen: list[int] = []

    async def unrelated(n: int) -> None: ...

    async def bill(n: int) -> None:
        seen.append(n)

    add("ordered", n=1)
    add("other", n=1)
    assert drain_sync(app_with(unrelated, event="other"), outbox_settings).done == {"unrelated": 1}
    add("ordered", n=2)
    assert drain_sync(app_with(bill), outbox_settings).done == {"bill": 2}
    assert seen == [1, 2]


def test_a_payload_of_a_newer_writer_is_tried_until_the_code_that_knows_it_is_there(
    outbox_settings: Settings, add: Add, sql: Any
) -> None:
    async def bill(order: int) -> None: ...

    async def newer(number: int) -> None: ...

    add("ordered", number=7)

    async def deploy() -> None:
        with pytest.raises(DrainTimeoutError):
            await drain(app_with(bill, max_attempts=1000), outbox_settings, timeout=2)
        state, error = sql("SELECT state, error FROM outbox.delivery").fetchone()
        assert state == "retrying"
        assert "field 'order' is missing" in error
        assert (await drain(app_with(newer, name="bill"), outbox_settings, retry_at_once=True)).done == {"bill": 1}

    asyncio.run(deploy())


def test_a_payload_that_never_fits_ends_as_a_dead_letter_that_names_the_field(
    outbox_settings: Settings, add: Add, sql: Any
) -> None:
    async def bill(order: int) -> None: ...

    add("ordered", order="4111-secret")
    assert drain_sync(app_with(bill, max_attempts=3), outbox_settings).dead == {"bill": 1}
    attempts, error, payload = sql("SELECT attempts, error, payload FROM outbox.dead_letter").fetchone()
    assert attempts == 3
    assert "the payload does not fit handler 'bill': field 'order'" in error
    assert "4111" not in error
    assert payload == {"order": "4111-secret"}


def test_fields_may_be_added_and_removed_while_both_versions_run(outbox_settings: Settings, add: Add) -> None:
    async def bill(order: int, note: str = "none") -> None: ...

    add("ordered", order=1, note="removed by the next version")
    add("ordered", order=2, priority="added by the next version")
    assert drain_sync(app_with(bill, max_attempts=1), outbox_settings).done == {"bill": 2}


def test_one_function_handles_an_event_under_its_old_and_its_new_name(outbox_settings: Settings, add: Add) -> None:
    app, seen = App(), []

    @app.handler("ordered", name="bill")
    @app.handler("order_placed", name="bill_placed")
    async def bill(n: int) -> None:
        seen.append(n)

    add("ordered", n=1)
    add("order_placed", n=2)
    assert drain_sync(app, outbox_settings).done == {"bill": 1, "bill_placed": 1}
    assert sorted(seen) == [1, 2]


def test_a_function_may_be_renamed_when_its_handler_keeps_its_name(outbox_settings: Settings, add: Add) -> None:
    async def bill(n: int) -> None: ...

    async def send_invoice(n: int) -> None: ...

    add("ordered", n=1)
    assert drain_sync(app_with(bill), outbox_settings).done == {"bill": 1}
    add("ordered", n=2)
    assert drain_sync(app_with(send_invoice, name="bill"), outbox_settings).done == {"bill": 1}


def test_a_handler_that_was_renamed_by_accident_goes_on_when_it_has_its_name_again(
    outbox_settings: Settings, add: Add, sql: Any
) -> None:
    seen: list[tuple[str, int]] = []

    async def bill(n: int) -> None:
        seen.append(("bill", n))

    async def invoice(n: int) -> None:
        seen.append(("invoice", n))

    add("ordered", n=1)
    drain_sync(app_with(bill), outbox_settings)
    drain_sync(app_with(invoice), outbox_settings)
    add("ordered", n=2)
    drain_sync(app_with(invoice), outbox_settings)
    assert seen == [("bill", 1), ("invoice", 2)]
    drain_sync(app_with(bill), outbox_settings)
    assert seen[2:] == [("bill", 2)]
    assert sql("SELECT count(*) FROM outbox.delivery WHERE state = 'done'").fetchone() == (3,)


def test_a_handler_that_was_removed_is_forgotten_by_command_and_its_retries_with_it(
    outbox_settings: Settings, add: Add, sql: Any
) -> None:
    async def bill(n: int) -> None:
        raise RetryLater(3600)

    async def ship(n: int) -> None: ...

    add("ordered", n=1)
    with pytest.raises(DrainTimeoutError):
        drain_sync(app_with(bill, ship), outbox_settings, timeout=3)
    add("ordered", n=2)
    assert drain_sync(app_with(ship), outbox_settings).done == {"ship": 1}
    assert sql("SELECT count(*) FROM outbox.delivery WHERE state = 'retrying'").fetchone() == (1,)
    assert admin.forget(outbox_settings, "bill").retrying == 1
    add("ordered", n=3)
    assert drain_sync(app_with(ship), outbox_settings).done == {"ship": 1}
    assert sql("SELECT name FROM outbox.handler").fetchall() == [("ship",)]
    states = sql("SELECT DISTINCT handler, state FROM outbox.delivery ORDER BY 1").fetchall()
    assert states == [("bill", "cancelled"), ("ship", "done")]


def test_workers_of_two_versions_share_the_work_and_the_new_handler_is_only_the_new_ones(
    outbox_settings: Settings, add: Add, sql: Any
) -> None:
    seen: list[str] = []

    async def bill(n: int) -> None:
        seen.append("bill")

    async def ship(n: int) -> None:
        seen.append("ship")

    older, newer = app_with(bill), app_with(bill, ship, start="beginning")
    for n in range(50):
        add("ordered", n=n)

    async def both() -> None:
        async with Worker(older, outbox_settings) as worker:
            running = asyncio.create_task(worker.run())
            await drain(newer, outbox_settings)
            worker.request_stop()
            await running

    asyncio.run(both())
    assert (seen.count("bill"), seen.count("ship")) == (50, 50)
    assert sql("SELECT count(*) FROM outbox.delivery WHERE state = 'done'").fetchone() == (100,)
