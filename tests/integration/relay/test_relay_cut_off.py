"""Leaders that stand still or cannot reach PostgreSQL while it still holds their lock, and connections half open."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr

from outbox.settings import Settings

TAKEOVER = 12.0
"""Seconds within which a standby leads after its leader was stopped or cut off."""


def through(settings: Settings, url: str) -> Settings:
    """The relay's own address of the database."""
    return settings.model_copy(update={"relay_database_url": SecretStr(url)})


@pytest.mark.slow
def test_a_leader_that_stands_still_is_replaced_and_steps_down_when_it_returns(
    box: Any, start_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    leader = start_relay()
    box.subscribe("send", event="paid")
    known = box.add("paid")
    box.await_seqs(known, "paid")
    standby = start_relay()
    standby.await_line("relay.standby")
    leader.pause()
    stopped = time.monotonic()
    seqs = [*known, *box.add("paid", 3)]
    box.await_seqs(seqs, "paid")
    assert time.monotonic() - stopped < TAKEOVER
    [successor] = box.leaders()
    leader.resume()
    leader.await_line("relay.lead_lost")
    wait_for(lambda: "relay.standby" in leader.output(), "the returned relay standing by")
    seqs += box.add("paid", 3)
    box.await_seqs(seqs, "paid")
    assert box.leaders() == [successor]
    assert box.attached("send")


@pytest.mark.slow
def test_a_leader_that_is_cut_off_is_replaced_and_leads_again_when_it_is_needed(
    box: Any,
    settings: Settings,
    database_proxy: Any,
    start_relay: Callable[..., Any],
    wait_for: Callable[..., Any],
) -> None:
    proxy, url = database_proxy
    cut_off = start_relay(through(settings, url))
    box.subscribe("send", event="paid")
    known = box.add("paid")
    box.await_seqs(known, "paid")
    standby = start_relay()
    standby.await_line("relay.standby")
    proxy.hold()
    held = time.monotonic()
    seqs = [*known, *box.add("paid", 3)]
    box.await_seqs(seqs, "paid")
    assert time.monotonic() - held < TAKEOVER
    standby.kill()
    seqs += box.add("paid", 2)
    proxy.release()
    cut_off.await_line("relay.lead_lost")
    seqs += box.add("paid", 2)
    box.await_seqs(seqs, "paid")
    assert box.attached("send")


def test_replies_of_postgresql_that_are_lost_lose_and_double_nothing(
    box: Any,
    settings: Settings,
    database_proxy: Any,
    run_relay: Callable[..., Any],
    wait_for: Callable[..., Any],
) -> None:
    proxy, url = database_proxy
    asked = "SELECT query_start FROM pg_stat_activity WHERE pid = %s"
    with run_relay(through(settings, url)):
        box.subscribe("send", event="paid")
        seqs: list[int] = []
        for _ in range(3):
            leader = box.await_leader()
            before = box.one(asked, leader)
            seqs += box.add("paid", 300)
            proxy.mute()
            wait_for(
                lambda leader=leader, before=before: box.one(asked, leader) != before, "a query that is not answered"
            )
            proxy.cut()
            wait_for(lambda leader=leader: box.leaders() not in ([], [leader]), "another session that leads")
        box.await_seqs(seqs, "paid")
        assert box.attached("send")


def test_connections_that_end_again_and_again_delay_and_lose_nothing(
    box: Any, settings: Settings, database_proxy: Any, run_relay: Callable[..., Any]
) -> None:
    proxy, url = database_proxy
    with run_relay(through(settings, url)):
        box.subscribe("send", event="paid")
        seqs: list[int] = []
        for _ in range(20):
            seqs += box.add("paid", 50)
            proxy.cut()
        box.await_seqs(seqs, "paid")
        assert box.attached("send")


def test_the_relay_needs_its_direct_connection_only(
    box: Any, settings: Settings, run_relay: Callable[..., Any]
) -> None:
    direct = settings.libpq_url()
    nowhere = settings.model_copy(update={"database_url": SecretStr("postgresql://nobody@127.0.0.1:1/nothing")})
    with run_relay(through(nowhere, direct)):
        box.subscribe("send", event="paid")
        box.await_seqs(box.add("paid"), "paid")
