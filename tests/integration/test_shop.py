"""The example shop's real endpoints, under uvicorn on a real PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from console.demo.stage import Program, examples_folder
from console.servers import free_port

ORDER = {"item": "lamp", "cents": 1000, "country": "DE", "card": "accepted"}


@pytest.fixture
def shop(database_url: str, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a shop that runs on this test's database."""
    port = free_port()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:

        def answers() -> bool:
            try:
                return client.get("/health").json() == {"status": "ok"}
            except httpx.TransportError:
                return False

        environment = {**os.environ, "OUTBOX_DATABASE_URL": database_url}
        with Program(tmp_path, "api", ["uvicorn", "shop.api:app", "--port", str(port)], environment, answers):
            yield client


def rows(database_url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database_url) as connection:
        return connection.execute(query.encode()).fetchall()


def test_a_sign_up_stores_the_customer_and_its_event_together(shop: httpx.Client, database_url: str) -> None:
    answer = shop.post("/signup", json={"email": "ann@shop.example"})
    assert answer.status_code == 201
    assert rows(database_url, "SELECT id, email FROM users") == [(answer.json()["id"], "ann@shop.example")]
    assert rows(database_url, "SELECT id::text, name, payload FROM outbox.event") == [
        (answer.json()["event"], "signed_up", {"user_id": answer.json()["id"], "email": "ann@shop.example"})
    ]


def test_a_second_sign_up_of_an_address_is_refused_and_adds_no_event(shop: httpx.Client, database_url: str) -> None:
    shop.post("/signup", json={"email": "ann@shop.example"})
    assert shop.post("/signup", json={"email": "ann@shop.example"}).status_code == 409
    assert rows(database_url, "SELECT count(*) FROM outbox.event") == [(1,)]


def test_an_order_stores_its_event_under_the_customers_key(shop: httpx.Client, database_url: str) -> None:
    customer = shop.post("/signup", json={"email": "ann@shop.example"}).json()["id"]
    answer = shop.post("/orders", json={"user_id": customer, **ORDER})
    assert answer.status_code == 201
    assert rows(database_url, "SELECT id::text, key, payload FROM outbox.event WHERE name = 'order_placed'") == [
        (answer.json()["event"], f"user:{customer}", {"order_id": answer.json()["id"]})
    ]


def test_a_declined_card_leaves_neither_order_nor_event(shop: httpx.Client, database_url: str) -> None:
    customer = shop.post("/signup", json={"email": "ann@shop.example"}).json()["id"]
    answer = shop.post("/orders", json={"user_id": customer, **ORDER, "card": "declined"})
    assert answer.status_code == 402
    assert answer.json()["detail"]["event"]
    assert rows(database_url, "SELECT id FROM orders") == []
    assert rows(database_url, "SELECT id FROM outbox.event WHERE name = 'order_placed'") == []


def test_the_web_process_loads_neither_redis_nor_relay_nor_workers(database_url: str) -> None:
    program = "import sys, shop.api; print(sorted({'redis', 'relay', 'workers'} & sys.modules.keys()))"
    environment = {**os.environ, "OUTBOX_DATABASE_URL": database_url}
    loaded = subprocess.run(
        [sys.executable, "-c", program],
        cwd=examples_folder(), env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert loaded.stdout == "[]\n"
