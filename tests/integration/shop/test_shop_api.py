"""The example shop's endpoints: what they store, and which events with it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import httpx
import pytest
from shop.models import Order, User
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

import outbox
from console.demo.stage import examples_folder

pytestmark = pytest.mark.anyio

ORDER = {"item": "lamp", "cents": 1000, "country": "DE", "card": "accepted"}


async def events(session: AsyncSession) -> list[tuple[str, str | None, Any]]:
    found = await outbox.testing.added(session, committed=True)
    return [(str(event.id), event.key, event.payload) for event in found]


async def sign_up(client: httpx.AsyncClient) -> dict[str, Any]:
    answer = await client.post("/signup", json={"email": "ann@shop.example"})
    assert answer.status_code == 201
    found: dict[str, Any] = answer.json()
    return found


async def test_a_sign_up_stores_the_customer_and_its_event_together(
    client: httpx.AsyncClient, session: AsyncSession
) -> None:
    answer = await sign_up(client)
    user = (await session.scalars(select(User))).one()
    assert (user.id, user.email) == (answer["id"], "ann@shop.example")
    assert await events(session) == [(answer["event"], None, {"user_id": user.id, "email": user.email})]


async def test_a_second_sign_up_of_an_address_is_refused_and_adds_no_event(
    client: httpx.AsyncClient, session: AsyncSession
) -> None:
    first = await sign_up(client)
    assert (await client.post("/signup", json={"email": "ann@shop.example"})).status_code == 409
    assert [event for event, _, _ in await events(session)] == [first["event"]]


async def test_an_order_stores_its_event_under_the_customers_key(
    client: httpx.AsyncClient, session: AsyncSession
) -> None:
    customer = (await sign_up(client))["id"]
    answer = await client.post("/orders", json={"user_id": customer, **ORDER})
    assert answer.status_code == 201
    placed = answer.json()
    assert (await events(session))[1:] == [(placed["event"], f"user:{customer}", {"order_id": placed["id"]})]


async def test_a_declined_card_leaves_neither_order_nor_event(client: httpx.AsyncClient, session: AsyncSession) -> None:
    first = await sign_up(client)
    answer = await client.post("/orders", json={"user_id": first["id"], **ORDER, "card": "declined"})
    assert answer.status_code == 402
    assert answer.json()["detail"]["event"]
    assert await session.scalar(select(func.count()).select_from(Order)) == 0
    assert [event for event, _, _ in await events(session)] == [first["event"]]


async def test_a_customer_may_ask_where_an_event_is(client: httpx.AsyncClient) -> None:
    first = await sign_up(client)
    answer = await client.get(f"/events/{first['event']}")
    assert answer.status_code == 200
    story = answer.json()
    assert (story["id"], story["name"], story["state"]) == (first["event"], "signed_up", "waiting")
    assert story["waits_for"]["code"] == "no_handler"
    assert [moment["what"] for moment in story["moments"]] == ["added", "committed"]
    unknown = await client.get("/events/0197b6b0-5d3e-7c2a-9f00-3d2b6c1a7e55")
    assert unknown.status_code == 404
    assert unknown.json()["detail"].startswith("no committed event has this id")


async def test_the_shop_says_that_it_is_well(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health")).json() == {"status": "ok"}


def test_the_web_process_loads_neither_redis_nor_relay_nor_workers() -> None:
    program = "import sys, shop.api; print(sorted({'redis', 'relay', 'workers'} & sys.modules.keys()))"
    environment = {**os.environ, "OUTBOX_DATABASE_URL": "postgresql:///shop"}
    loaded = subprocess.run(
        [sys.executable, "-c", program],
        cwd=examples_folder(), env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert loaded.stdout == "[]\n"
