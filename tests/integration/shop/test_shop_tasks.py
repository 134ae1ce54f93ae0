"""The example shop's handlers: each by itself, on one event more than once, and all of them to the end."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from uuid import UUID

import httpx
import pytest
import structlog
from shop.models import Effect, Invoice, Mail, Order, User
from shop.tasks import app
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from outbox import telemetry
from outbox.settings import Settings
from outbox_testing import added, assert_idempotent, drain, run
from workers import Dead, Done, Retry

pytestmark = pytest.mark.anyio

ORDER = {"item": "lamp", "cents": 1000, "country": "DE", "card": "accepted"}


@pytest.fixture
async def user(client: httpx.AsyncClient, session: AsyncSession) -> int:
    """A customer who did not come through the API: no event waits."""
    session.add(User(id=7, email="ann@shop.example"))
    await session.flush()
    return 7


@pytest.fixture
def place(user: int, session: AsyncSession) -> Callable[..., Awaitable[int]]:
    """Store an order without its event: `await place(id=10, country="FR")`."""

    async def store(**given: Any) -> int:
        order = Order(**{"user_id": user, "item": "lamp", "cents": 1000, "country": "DE", **given})
        session.add(order)
        await session.flush()
        return order.id

    return store


async def test_the_welcome_goes_to_the_address_once_whatever_comes_again(
    client: httpx.AsyncClient, session: AsyncSession
) -> None:
    async def mails() -> list[Any]:
        return [tuple(row) for row in await session.execute(select(Mail.recipient, Mail.subject))]

    payload = {"user_id": 7, "email": "ann@shop.example"}
    await assert_idempotent(app, "send_welcome", payload, state=mails)
    assert await mails() == [("ann@shop.example", "Welcome")]


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What the programs logged on standard error."""
    before = structlog.get_config()
    telemetry.configure("info", "json")
    # The loggers of modules are still there after this test.
    structlog.configure(cache_logger_on_first_use=False)
    yield lambda: capsys.readouterr().err
    structlog.configure(**before)


async def test_the_id_of_a_request_appears_in_the_logs_of_its_handlers(
    client: httpx.AsyncClient, outbox_settings: Settings, log: Callable[[], str]
) -> None:
    answer = await client.post("/signup", json={"email": "ann@shop.example"}, headers={"X-Request-Id": "req-7"})
    await client.post("/signup", json={"email": "bob@shop.example"})
    await drain(app, outbox_settings)
    lines = [json.loads(line) for line in log().splitlines()]
    ann, bob = sorted((line for line in lines if line["event"] == "welcome"), key=lambda line: line["user_id"])
    names = ("event_id", "handler", "attempt", "correlation_id")
    assert [ann[name] for name in names] == [answer.json()["event"], "send_welcome", 1, "req-7"]
    assert UUID(bob["correlation_id"]), "one is made up for a request without"


async def test_points_are_awarded_once_whatever_comes_again(
    user: int, session: AsyncSession, outbox_settings: Settings
) -> None:
    async def points() -> Any:
        effects = await session.scalar(select(func.count()).select_from(Effect))
        return effects, await session.scalar(select(User.points))

    await assert_idempotent(app, "award_points", {"user_id": user}, state=points, database=outbox_settings)
    assert await points() == (1, 100)


async def test_an_invoice_adds_the_tax_and_says_that_it_was_written(
    place: Callable[..., Awaitable[int]], session: AsyncSession, outbox_settings: Settings
) -> None:
    payload = {"order_id": await place(cents=1000, country="DE")}
    assert await run(app, "write_invoice", payload, database=outbox_settings) == Done()
    invoice = (await session.scalars(select(Invoice))).one()
    assert invoice.cents == 1190
    [event] = await added(session, committed=True)
    assert (event.name, event.payload) == ("invoice_written", {"invoice_id": invoice.id, "email": "ann@shop.example"})


async def test_an_invoice_for_a_country_without_a_tax_rate_is_tried_again_and_given_up(
    place: Callable[..., Awaitable[int]], session: AsyncSession, outbox_settings: Settings
) -> None:
    payload = {"order_id": await place(country="Atlantis")}
    first = await run(app, "write_invoice", payload, database=outbox_settings)
    assert isinstance(first, Retry)
    assert 0.2 <= first.delay <= 0.3
    last = await run(app, "write_invoice", payload, database=outbox_settings, attempt=4)
    assert isinstance(last, Dead)
    assert "no tax rate for Atlantis" in last.reason
    assert await session.scalar(select(func.count()).select_from(Invoice)) == 0


async def test_goods_are_reserved_when_the_warehouse_answers_again(
    place: Callable[..., Awaitable[int]], session: AsyncSession, outbox_settings: Settings
) -> None:
    payload = {"order_id": await place(id=10)}
    assert isinstance(await run(app, "reserve_goods", payload, database=outbox_settings), Retry)
    assert await session.scalar(select(Order.reserved)) is False
    assert await run(app, "reserve_goods", payload, database=outbox_settings, attempt=2) == Done()
    assert await session.scalar(select(Order.reserved)) is True


async def test_from_the_request_to_the_mailed_invoice(
    client: httpx.AsyncClient, session: AsyncSession, outbox_settings: Settings
) -> None:
    customer = (await client.post("/signup", json={"email": "ann@shop.example"})).json()["id"]
    for country in ("DE", "Atlantis"):
        await client.post("/orders", json={"user_id": customer, **ORDER, "country": country})
    drained = await drain(app, outbox_settings, retry_at_once=True)
    assert drained.done == {
        "send_welcome": 1, "award_points": 1, "write_invoice": 1, "reserve_goods": 2, "send_invoice": 1,
    }  # fmt: skip
    assert drained.dead == {"write_invoice": 1}
    assert drained.retried == {"write_invoice": 3}
    assert (await session.scalars(select(Mail.subject).order_by(Mail.subject))).all() == ["Welcome", "Your invoice 1"]
