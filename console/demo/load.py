"""The customers: real HTTP requests, planned from a seed and sent with bounded concurrency."""

from __future__ import annotations

import asyncio
import random
from dataclasses import asdict, dataclass, field
from typing import Literal
from uuid import UUID

import httpx

CONCURRENCY = 16
"""Requests under way at a time."""

Card = Literal["accepted", "declined"]


@dataclass(frozen=True)
class SignUp:
    """A request to POST /signup."""

    email: str


@dataclass(frozen=True)
class Order:
    """A request to POST /orders. `customer` counts through those who have signed up, round and round."""

    customer: int
    item: str
    cents: int
    country: str
    card: Card = "accepted"


POISON = Order(customer=0, item="trident", cents=99_900, country="Atlantis")
"""The order whose invoice cannot be written: there is no tax rate for its country."""


def plan(requests: int, seed: int) -> list[SignUp | Order]:
    """The requests of a run, the same for the same seed: a third sign-ups, a tenth declined cards, one poison."""
    rng = random.Random(seed)
    planned: list[SignUp | Order] = []
    for number in range(requests):
        if number == 0 or rng.random() < 0.3:
            planned.append(SignUp(f"customer-{number}@shop.example"))
            continue
        card: Card = "declined" if rng.random() < 0.15 else "accepted"
        item = rng.choice(["kettle", "lamp", "chair", "globe"])
        planned.append(Order(rng.randrange(requests), item, rng.randrange(500, 50_000), rng.choice(["DE", "FR"]), card))
    planned.insert(1 + rng.randrange(requests // 2), POISON)
    return planned[:requests]


@dataclass
class Answers:
    """What the customers were told.

    `accepted` holds the events of successful requests, `refused` those of declined cards with the order that was rolled
    back, `unexpected` a line for each answer that should not have come.
    """

    accepted: list[UUID] = field(default_factory=list)
    refused: dict[UUID, int] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Requests that were answered."""
        return len(self.accepted) + len(self.refused) + len(self.unexpected)


class Customers:
    """Sends planned requests to the shop at `url` and keeps the answers.

    >>> customers = Customers("http://127.0.0.1:8000")
    >>> await customers.send(plan(1000, seed=1))
    >>> len(customers.answers.accepted)
    903
    """

    def __init__(self, url: str) -> None:
        self.answers = Answers()
        self._url = url
        self._users: list[int] = []
        self._answered = asyncio.Condition()

    async def reached(self, answers: int) -> None:
        """Return when that many requests have been answered."""
        async with self._answered:
            await self._answered.wait_for(lambda: self.answers.total >= answers)

    async def send(self, planned: list[SignUp | Order]) -> None:
        """Send all of them; the first one alone, for the orders need a customer."""
        waiting = iter(planned)
        limits = httpx.Limits(max_connections=CONCURRENCY)
        async with httpx.AsyncClient(base_url=self._url, limits=limits, timeout=30, trust_env=False) as client:

            async def customer() -> None:
                for request in waiting:
                    await self._send(client, request)

            await self._send(client, next(waiting))
            async with asyncio.TaskGroup() as group:
                for _ in range(CONCURRENCY):
                    group.create_task(customer())

    async def _send(self, client: httpx.AsyncClient, request: SignUp | Order) -> None:
        path, body = "/signup", asdict(request)
        if isinstance(request, Order):
            path, body["user_id"] = "/orders", self._users[body.pop("customer") % len(self._users)]
        try:
            self._record(request, await client.post(path, json=body))
        except httpx.TransportError as error:
            self.answers.unexpected.append(f"{request}: {error!r}")
        async with self._answered:
            self._answered.notify_all()

    def _record(self, request: SignUp | Order, response: httpx.Response) -> None:
        declined = isinstance(request, Order) and request.card == "declined"
        if response.status_code == 402 and declined:
            refused = response.json()["detail"]
            self.answers.refused[UUID(refused["event"])] = refused["id"]
        elif response.status_code == 201 and not declined:
            accepted = response.json()
            self.answers.accepted.append(UUID(accepted["event"]))
            if isinstance(request, SignUp):
                self._users.append(accepted["id"])
        else:
            self.answers.unexpected.append(f"{request}: {response.status_code} {response.text[:200]}")
