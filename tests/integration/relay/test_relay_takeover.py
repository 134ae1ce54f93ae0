"""What a new leader makes of what the last one left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_a_new_leader_publishes_nothing_a_second_time(
    box: Any, run_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    seqs = box.add("paid", 3)
    with run_relay():
        box.register("send", event="paid")
        assert box.work_until("paid", "send", seqs) == seqs
        box.await_attached("send")
    with run_relay():
        more = box.add("paid")
        wait_for(lambda: more[0] in box.seqs("paid"), "the next event")
        assert box.seqs("paid") == more
