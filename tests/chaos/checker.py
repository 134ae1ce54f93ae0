"""The checker: what was said, what is there, and every way in which they may disagree. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from tests.chaos.facts import Delivery, Effect, Facts, Row, Run, Sighting

MAX_CRASHES = 3
"""Deaths of its worker after which an event may be a dead letter though nothing is wrong with it."""


@dataclass(frozen=True)
class Finding:
    """Something that must not be: its kind, what it is about, and what is wrong."""

    kind: str
    event: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" + (f" (event {self.event})" if self.event else "")


def check(facts: Facts) -> list[Finding]:
    """Every finding, the gravest kinds first. None means that all promises were kept."""
    return [finding for look in LOOKS for finding in look(facts)]


def written(facts: Facts) -> Iterator[Finding]:
    """What a writer was told agrees with what is there, and business row and event agree whatever it was told."""
    for said, tx in facts.said.values():
        there, business = said.id in facts.rows, said.id in facts.business
        if said.undone:
            if there:
                yield Finding("ghost", said.id, "it was rolled back to a savepoint and is there")
            continue
        if there != business:
            yield Finding("torn", said.id, f"business row {business}, event {there}, its writer knows: {tx.outcome}")
        if tx.outcome == "ok" and not there and (tx.flushed or not facts.crashed):
            yield Finding("lost", said.id, "its transaction was committed, and it is not there")
        if tx.outcome == "fail" and there:
            yield Finding("ghost", said.id, "its transaction failed or was rolled back, and it is there")
        if there and facts.rows[said.id].sha != said.sha:
            yield Finding("changed", said.id, "its payload is not what was added")
    for tx in facts.transactions:
        there_of = {said.id in facts.rows for said in tx.events if not said.undone}
        if len(there_of) > 1:
            yield Finding("torn", tx.events[0].id, f"only a part of transaction {tx.tx} is there")


def invented(facts: Facts) -> Iterator[Finding]:
    """Nothing is there, was published, or had an effect that nobody said."""
    follows = {effect.follow for effect in facts.effects}
    for row in facts.events:
        if row.id not in facts.said and row.id not in follows:
            yield Finding("ghost", row.id, f"nobody added this event {row.name!r}")
    for sighting in facts.sightings:
        if sighting.event not in facts.rows:
            yield Finding("ghost", sighting.event, f"published on {sighting.stream!r}, and it is not there")
    for effect in facts.effects:
        if effect.event not in facts.rows:
            yield Finding("ghost", effect.event, f"{effect.handler} had an effect of an event that is not there")
        if effect.follow is not None and effect.follow not in facts.rows:
            yield Finding("torn", effect.event, f"{effect.handler}'s follow-up event {effect.follow} is not there")


def lost(facts: Facts) -> Iterator[Finding]:
    """Every event has an outcome at every handler, and what is done has its effect."""
    for row, handler in facts.owed():
        delivery = facts.outcomes.get((row.id, handler.name))
        if delivery is None:
            yield Finding("lost", row.id, f"{handler.name} never got it")
            continue
        pair = (row.id, handler.name)
        if delivery.state == "done":
            if handler.name in facts.transactional and not facts.effected[pair]:
                yield Finding("lost", row.id, f"{handler.name} is done with it and it had no effect")
            if handler.name in facts.plain | facts.once and pair not in facts.ran:
                yield Finding("lost", row.id, f"{handler.name} is done with it and never ran to its end")
            if handler.name in facts.answering and delivery.result != row.sha:
                yield Finding(
                    "changed", row.id, f"{handler.name}'s result is {delivery.result!r}, not what it returned"
                )
        elif delivery.state == "dead":
            yield from _dead(facts, row, delivery)
        else:
            yield Finding("stuck", row.id, f"{handler.name} still has it as {delivery.state}")


def _dead(facts: Facts, row: Row, delivery: Delivery) -> Iterator[Finding]:
    if delivery.letter is None:
        yield Finding("lost", row.id, f"dead at {delivery.handler} without a dead letter")
        return
    doomed = row.id in facts.doomed and delivery.handler == "refuse"
    interrupted = delivery.handler in facts.once
    if not (doomed or interrupted or delivery.crashes >= MAX_CRASHES):
        yield Finding("buried", row.id, f"dead at {delivery.handler} for no reason: {delivery.letter[:120]}")
    elif not doomed and not interrupted and (row.id, delivery.handler) not in facts.began:
        yield Finding("buried", row.id, f"dead at {delivery.handler}, where it never ran: {delivery.letter[:120]}")


def doubled(facts: Facts) -> Iterator[Finding]:
    """No effect twice, none of what failed, no entry under two ids on a stream, no second run of `at_most_once`."""
    for (event, handler), times in facts.effected.items():
        if times > 1:
            yield Finding("duplicate", event, f"{handler} had its effect {times} times")
        delivery = facts.outcomes.get((event, handler))
        if delivery is None or delivery.state != "done":
            state = "without an outcome" if delivery is None else delivery.state
            yield Finding("duplicate", event, f"{handler} had an effect, and the delivery is {state}")
    for (event, handler), times in Counter((run.event, run.handler) for run in facts.runs).items():
        if handler in facts.once and times > 1:
            yield Finding("duplicate", event, f"{handler} ran {times} times")
    # A catch-up feed may read ticks that were thinned since: an entry has one id on each stream.
    places: dict[tuple[str, str], Sighting] = {}
    for sighting in facts.sightings:
        known = places.setdefault((sighting.stream, sighting.event), sighting)
        if (known.tick, known.seq) != (sighting.tick, sighting.seq):
            where = f"{known.tick}-{known.seq} and {sighting.tick}-{sighting.seq}"
            yield Finding("duplicate", sighting.event, f"it is on {sighting.stream!r} twice: {where}")


def misplaced(facts: Facts) -> Iterator[Finding]:
    """An entry's id is the event's place, and events of one key stand in the order of their numbers."""
    by_key: dict[tuple[str, str], list[tuple[int, int, float, str]]] = defaultdict(list)
    for sighting in facts.sightings:
        row = facts.rows.get(sighting.event)
        if row is not None and row.seq != sighting.seq:
            place = f"{sighting.tick}-{sighting.seq}"
            yield Finding("order", row.id, f"its seq is {row.seq}, and its place on the stream {place}")
        if sighting.event in facts.said:
            said, _ = facts.said[sighting.event]
            if said.key is not None:
                place_of = (sighting.tick, sighting.seq, said.n, said.id)
                by_key[sighting.stream, said.key].append(place_of)
    for (stream, key), places in by_key.items():
        ordered = sorted(set(places))
        for (_, _, before, _), (_, _, after, event) in pairwise(ordered):
            if after < before:
                yield Finding("order", event, f"on {stream!r} number {after:g} of {key} stands behind {before:g}")


def changed(facts: Facts) -> Iterator[Finding]:
    """Handlers see the payload that was added."""
    seen_by: tuple[Effect | Run, ...] = (*facts.effects, *facts.runs)
    for seen in seen_by:
        row = facts.rows.get(seen.event)
        if row is not None and seen.sha and row.sha != seen.sha:
            yield Finding("changed", seen.event, f"{seen.handler} saw another payload")


def stuck(facts: Facts) -> Iterator[Finding]:
    """Everything came to rest within the bound, and nobody gave up."""
    for what in facts.unsettled:
        yield Finding("stuck", "", what)
    for what in facts.fallen:
        yield Finding("fell", "", what)


LOOKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    written,
    invented,
    doubled,
    lost,
    misplaced,
    changed,
    stuck,
)
