"""The demo's requests are planned from a seed."""

from __future__ import annotations

import pytest

from console.demo.load import POISON, Order, SignUp, plan


@pytest.mark.parametrize("requests", [20, 1000])
@pytest.mark.parametrize("seed", range(20))
def test_every_plan_has_one_poison_in_its_first_half_and_begins_with_a_sign_up(requests: int, seed: int) -> None:
    planned = plan(requests, seed)
    assert len(planned) == requests
    assert isinstance(planned[0], SignUp)
    assert planned.count(POISON) == 1
    assert planned.index(POISON) <= requests // 2


def test_the_same_seed_plans_the_same_requests() -> None:
    assert plan(200, seed=3) == plan(200, seed=3)
    assert plan(200, seed=3) != plan(200, seed=4)


def test_a_plan_holds_sign_ups_orders_and_declined_cards() -> None:
    planned = plan(1000, seed=1)
    orders = [request for request in planned if isinstance(request, Order)]
    declined = [order for order in orders if order.card == "declined"]
    assert len(planned) - len(orders) > 200
    assert 50 < len(declined) < len(orders) / 2


def test_no_two_customers_share_an_address() -> None:
    addresses = [request.email for request in plan(1000, seed=1) if isinstance(request, SignUp)]
    assert len(addresses) == len(set(addresses))
