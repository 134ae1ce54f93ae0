"""What must hold of a simulated world: at every step, and when all faults are over and everything has had its time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from outbox.position import ORIGIN, Position
from relay import bounds
from tests.chaos.model.handlers import IS_REJECTED, application
from tests.chaos.model.postgres import Event
from tests.chaos.model.streams import Fields
from tests.chaos.model.world import World

TRANSACTIONAL = ("book", "file")
NAMES = {handler.name: handler.event_name for handler in application().handlers.values()}
CRASHES = 3


class BrokenPromise(AssertionError):
    """One of the promises does not hold."""


class Promises:
    """Watches a world."""

    def __init__(self, world: World, *, protocol: bool = True) -> None:
        self.world = world
        self.protocol = protocol
        """Whether the relay's and workers' own agreements are watched, too, which users never see."""
        self.places: dict[str, Position] = {}
        self._effects = 0
        self._happened = 0
        self.harmed = False
        """Redis lost something: then the sweep may find that outcomes are missing."""
        world.redis.on_append = self._published
        world.postgres.on_hole = self._hole
        world.redis.on_acknowledge = self._acknowledged

    # At every step

    def check(self) -> None:
        """What must hold at any moment."""
        server = self.world.postgres
        if len(server.effects) != self._effects:
            self._effects = len(server.effects)
            twice = [effect for effect, count in Counter(server.effects).items() if count > 1]
            _none(twice, "I3: the effect of a transactional handler is there twice")
            _none([e for e in server.effects if e[1] not in server.events], "I2: an effect of an event that never was")
        if len(self.world.happened) != self._happened:
            self._happened = len(self.world.happened)
            _none(
                [e for e in self.world.happened if e[1] not in server.events], "I2: a run for an event that never was"
            )
            rung = Counter(event for handler, event in self.world.happened if handler == "ring")
            _none([each for each, count in rung.items() if count > 1], "at most once: a second run")
        self._bounded()
        if self.protocol:
            self._done_is_done()

    def _published(self, key: str, at: Position, fields: Fields) -> None:
        server = self.world.postgres
        event = server.events.get(fields[1].decode())
        if event is None:
            raise BrokenPromise(f"I2: {fields[1]!r} is published as {key} {at}, and is not in PostgreSQL")
        if not event.flushed:
            raise BrokenPromise(f"I2: {event.id} is published before it is durable")
        if fields[7].decode() != event.payload:
            raise BrokenPromise(f"I6: {event.id} is published with another payload")
        if self.protocol and server.place(event) != at:
            raise BrokenPromise(f"I4: {event.id} is published as {at}, and stands at {server.place(event)}")
        # Without that, only the order counts that readers of the stream see.
        self.places[event.id] = max(at, self.places.get(event.id, at))
        self._in_order(event)

    def _in_order(self, event: Event) -> None:
        for other, at in self.places.items():
            known = self.world.postgres.events.get(other)
            if (
                known is not None
                and event.key
                and known.key == event.key
                and (known.turn - event.turn) * (at > self.places[event.id] or -1) < 0
            ):
                raise BrokenPromise(f"I4: {event.id} and {other} of one key are published in the wrong order")

    def _acknowledged(self, key: str, group: str, at: Position, fields: Fields | None) -> None:
        if self.protocol and fields is not None and (fields[1].decode(), group) not in self.world.postgres.deliveries:
            raise BrokenPromise(f"I1: {fields[1]!r} is acknowledged for {group} without an outcome")

    def _hole(self, event_id: str, handler: str) -> None:
        if self.protocol and not self.harmed:
            raise BrokenPromise(f"I1: {handler} passed {event_id} over, which only the sweep mends")

    def _done_is_done(self) -> None:
        server = self.world.postgres
        for row in server.handlers.values():
            if row.done is None:
                continue
            for event in server.events.values():
                if event.name != row.event_name or (event.id, row.name) in server.deliveries:
                    continue
                place = server.place(event)
                if place is not None and (row.started or ORIGIN) < place <= row.done:
                    raise BrokenPromise(
                        f"I1: {row.name} is done up to {row.done}; {event.id} at {place} has no outcome"
                    )

    def _bounded(self) -> None:
        for key, stream in self.world.redis.streams.items():
            limit = (bounds.CATCH_UP if "}:" in key else bounds.MAIN).entries
            # What is appended at once goes over it.
            if len(stream.entries) > limit + MOST_AT_ONCE:
                raise BrokenPromise(f"I11: {key} holds {len(stream.entries)} entries")

    # In the end

    def open_deliveries(self) -> list[str]:
        """What is neither done nor dead, of those that a handler is to get."""
        server = self.world.postgres
        found = []
        for handler, name in NAMES.items():
            row = server.handlers.get(handler)
            for event in server.events.values():
                if event.name != name:
                    continue
                delivery = server.deliveries.get((event.id, handler))
                place = server.place(event)
                wanted = row is None or place is None or place > (row.started or ORIGIN)
                if wanted and (delivery is None or delivery.state == "retrying"):
                    found.append(f"{handler} {event.id}: {'nothing' if delivery is None else delivery}")
        return found

    def in_the_end(self) -> None:
        """What must hold when all is over."""
        _none(self.open_deliveries(), "I1, I5: lost or stuck")
        server = self.world.postgres
        done = Counter(server.effects) + Counter(set(self.world.happened))
        for (event_id, handler), row in server.deliveries.items():
            event = server.events.get(event_id)
            if event is None:
                raise BrokenPromise(f"I2: {handler} has an outcome of {event_id}, which never was")
            if row.state == "done" and not done[handler, event_id]:
                raise BrokenPromise(f"I1: {handler} is said to have done {event_id}, and has not")
            if row.state == "dead" and (event_id, handler) not in server.letters:
                raise BrokenPromise(f"I1: {handler} gave {event_id} up without a dead letter")
            rejected = f'"n":{IS_REJECTED}' in event.payload.replace(" ", "")
            if row.state == "dead" and not rejected and handler != "ring" and row.crashes < CRASHES:
                raise BrokenPromise(f"I1: {handler} gave {event_id} up: {row.error}")
            if handler in TRANSACTIONAL and row.state == "dead" and done[handler, event_id]:
                raise BrokenPromise(f"I3: {event_id} is dead at {handler}, and its effect is there")
        _none([row.name for row in server.handlers.values() if not row.attached], "I5: not attached again")
        held = {
            f"{key} {name}": list(group.pending)
            for key, stream in self.world.redis.streams.items()
            for name, group in stream.groups.items()
            if group.pending and name in NAMES
        }
        _none(list(held.items()), "I11: still pending")


MOST_AT_ONCE = 8
"""Entries that one call may add to a stream at the most."""


def _none(found: Sequence[object], promise: str) -> None:
    if found:
        raise BrokenPromise(f"{promise}: {', '.join(map(str, found[:5]))}")
