"""Relays that die or stand still between any two of their steps: nothing is lost, nothing is published twice."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outbox.position import Position
from relay import bounds

ROOT = Path(__file__).parents[3]

PLACES = sorted(
    {
        place
        for file in (ROOT / "relay").glob("*.py")
        for place in re.findall(r'\breach\("([\w.]+)"\)', file.read_text())
    }
)
"""Every failpoint of the relay."""

LARGE = 800
"""Events of one tick that are read in three chunks."""


class Shift:
    """A worker's part, and a relay that is started again when it has died."""

    def __init__(self, box: Any, start_relay: Callable[..., Any], failpoints: str) -> None:
        self.box = box
        self.start_relay = start_relay
        self.relay = start_relay(failpoints=failpoints)
        self.died = False
        self.seqs: list[int] = []

    def watch(self) -> None:
        """Start a relay again that died as it was told to."""
        if not self.died and self.relay.popen.poll() is not None:
            assert self.relay.popen.returncode == -signal.SIGKILL, self.relay.output()
            self.died = True
            self.relay = self.start_relay()

    def add(self, count: int) -> None:
        self.seqs += self.box.add("paid", count)

    def done(self) -> bool:
        """Work, and say whether all is done that was added."""
        self.watch()
        self.box.work("paid", "send")
        done: int = self.box.one("SELECT count(*) FROM outbox.delivery WHERE state = 'done'")
        return done == len(self.seqs)

    def published_all(self) -> bool:
        """Whether the main stream ends with what was added last."""
        self.watch()
        last = self.box.redis.xrevrange("outbox:{paid}", count=1)
        return bool(last) and Position.parse(last[0][0]).seq == self.seqs[-1]

    def filled(self) -> bool:
        """Whether the five events that nobody got are to be retried."""
        self.watch()
        return bool(self.box.one("SELECT count(*) FROM outbox.delivery WHERE state = 'retrying'") == 5)

    def moved(self) -> bool:
        """Whether the handler is attached and has passed everything."""
        self.watch()
        attached, done, _ = self.box.handler("send")
        return bool(attached and done and done >= Position(*self.box.one("SELECT tick, seq FROM outbox.relay")))


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_relay_that_dies_between_two_steps_loses_and_doubles_nothing(
    place: str, box: Any, start_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    box.register("send", event="paid")
    shift = Shift(box, start_relay, f"{place}=kill")
    shift.add(LARGE)
    catch_up(shift, wait_for)
    for phase in PHASES.get(place, (publish, fill, lose)):
        if not shift.died:
            phase(shift, wait_for)
    assert shift.died, f"{place} was not reached"
    shift.add(5)
    wait_for(shift.done, "all done")
    wait_for(shift.moved, "all passed")


def catch_up(shift: Shift, wait_for: Callable[..., Any]) -> None:
    """A backlog on a stream of the handler's own, and the way to the main stream."""
    wait_for(shift.done, "the backlog done")
    wait_for(shift.moved, "the handler attached")


def publish(shift: Shift, wait_for: Callable[..., Any]) -> None:
    """Several chunks on the main stream."""
    shift.add(LARGE)
    wait_for(shift.done, "the main stream's events done")


def fill(shift: Shift, wait_for: Callable[..., Any]) -> None:
    """Entries that nobody is given."""
    shift.add(5)
    wait_for(shift.published_all, "more events on the main stream")
    shift.box.redis.xgroup_setid("outbox:{paid}", "send", "$")
    wait_for(shift.filled, "holes that are filled")
    shift.box.sql.execute("UPDATE outbox.delivery SET state = 'done', due_at = NULL")


def lose(shift: Shift, wait_for: Callable[..., Any]) -> None:
    """The main stream is lost."""
    shift.add(LARGE)
    shift.box.redis.delete("outbox:{paid}")
    wait_for(shift.done, "the lost stream's events done")
    wait_for(shift.moved, "the handler attached again")


def lose_again(shift: Shift, wait_for: Callable[..., Any]) -> None:
    """And then the handler's own stream, while its feed waits for room."""
    shift.add(25_000)
    wait_for(shift.published_all, "all on the main stream")
    shift.box.redis.delete("outbox:{paid}")
    wait_for(lambda: shift.box.redis.xlen("outbox:{paid}:send") >= 10_000, "the full stream")
    shift.box.redis.delete("outbox:{paid}:send")
    wait_for(shift.done, "all done")


def overfill(shift: Shift, wait_for: Callable[..., Any]) -> None:
    """More than a main stream may hold, while the handler reads nothing of it."""
    box = shift.box
    shift.seqs += box.add("paid", 2 + (bounds.MAIN.size >> 20), payload=json.dumps({"filling": "x" * (1 << 20)}))
    wait_for(lambda: (shift.watch(), shift.died)[1], "the relay's death")
    wait_for(shift.done, "all done")


PHASES = {"feed.restarted": [lose_again], "relay.taken_off": [overfill]}
"""What it takes to reach a place, if that is not on everybody's way."""


def test_a_stream_that_is_deleted_between_two_chunks_of_a_tick_is_not_appended_over(
    box: Any, start_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    # Only what is attached goes through these: the third chunk settled of the main feed.
    relay = start_relay(failpoints="relay.appended=stop@2")
    box.subscribe("send", event="paid")
    seqs = box.add("paid", 20_000)
    relay.await_pause()
    assert 0 < box.redis.xlen("outbox:{paid}") < len(seqs)
    box.redis.delete("outbox:{paid}")
    relay.resume()
    assert box.work_until("paid", "send", seqs) == seqs
    relay.await_line("stream.lost")
    box.await_attached("send")
    more = box.add("paid", 3)
    assert box.work_until("paid", "send", more) == more


def test_a_paused_relay_that_sends_its_chunk_after_another_has_led_adds_nothing(
    box: Any, start_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    zombie = start_relay(failpoints="relay.read=stop@3")
    box.subscribe("send", event="paid")
    seqs = box.add("paid", 8000)
    zombie.await_pause()
    [backend] = box.leaders()
    box.sql.execute("SELECT pg_terminate_backend(%s)", [backend])
    start_relay().await_line("relay.leading")
    seqs += box.add("paid", 3)
    box.await_seqs(seqs, "paid")
    [successor] = box.leaders()
    zombie.resume()
    zombie.await_line("relay.lead_lost")
    wait_for(lambda: zombie.output().count("relay.standby"), "the returned relay standing by")
    assert box.leaders() == [successor]
    seqs += box.add("paid", 3)
    box.await_seqs(seqs, "paid")
    assert box.attached("send")
