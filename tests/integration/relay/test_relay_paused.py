"""A relay that is held back leads on and publishes nothing, also when another takes over, until it is resumed."""

from __future__ import annotations

from typing import Any

from outbox import admin


def test_a_paused_relay_publishes_nothing_and_all_of_it_when_it_is_resumed(
    box: Any, run_relay: Any, wait_for: Any
) -> None:
    with run_relay():
        box.subscribe("h", event="a")
        first = box.add("a", 3)
        box.await_seqs(first, "a")
        admin.pause(box.sql, "relay", reason="looking")
        # It has seen it when it no longer admits handlers.
        wait_for(lambda: "hold" in _last_query(box), "the relay at rest")
        second = box.add("a", 3)
        box.register("late", event="a")
        ticks = box.ticks()
        looked = _asked_at(box)
        wait_for(lambda: _asked_at(box) > looked, "another look")
        assert (box.seqs("a"), box.ticks()) == (first, ticks)
        assert not box.attached("late")
    # Nor does the next one.
    with run_relay():
        wait_for(lambda: "hold" in _last_query(box), "the relay at rest")
        looked = _asked_at(box)
        wait_for(lambda: _asked_at(box) > looked, "another look")
        assert box.seqs("a") == first
        admin.resume(box.sql, "relay")
        box.await_seqs(first + second, "a")
        box.await_attached("late")


def _last_query(box: Any) -> str:
    return str(box.one("SELECT query FROM pg_stat_activity WHERE pid = ANY (%s)", box.leaders()) or "")


def _asked_at(box: Any) -> Any:
    return box.one("SELECT query_start FROM pg_stat_activity WHERE pid = ANY (%s)", box.leaders())
