"""The checker: what was said, what is there, and every way in which they may disagree. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from tests.chaos.history import Entry

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


@dataclass(frozen=True)
class Said:
    """An event as its writer meant it."""

    id: str
    name: str
    key: str | None
    n: float
    sha: str
    undone: bool = False
    """Rolled back with its savepoint."""
    shifted: bool = False
    """Added with a clock that was wrong."""


@dataclass(frozen=True)
class Transaction:
    """A writer's transaction: what it wrote, and how it ended as far as the writer knows."""

    tx: str
    events: tuple[Said, ...]
    outcome: str
    """`ok`, `fail`, or `unknown`: no reply, or the writer was killed."""
    flushed: bool = True
    """COMMIT waited for the disk."""


@dataclass(frozen=True)
class Row:
    """An event as it is in the database."""

    id: str
    name: str
    key: str | None
    seq: int
    sha: str
    at: float


@dataclass(frozen=True)
class Handler:
    """A handler as it is in the database."""

    name: str
    event_name: str
    registered: float
    first: bool
    """Whether it began with all that there was."""


@dataclass(frozen=True)
class Delivery:
    """What came of an event at a handler, as the database says."""

    event: str
    handler: str
    state: str
    crashes: int
    letter: str | None
    """The error of its dead letter."""


@dataclass(frozen=True)
class Effect:
    """A row that a transactional handler wrote."""

    event: str
    handler: str
    sha: str
    follow: str | None


@dataclass(frozen=True)
class Run:
    """A run of a plain handler, or of any for a story."""

    event: str
    handler: str
    sha: str
    ended: bool


@dataclass(frozen=True)
class Sighting:
    """An entry that was seen on a main stream."""

    stream: str
    tick: int
    seq: int
    event: str


@dataclass(frozen=True)
class Facts:
    """All that there is to know about a run."""

    transactions: tuple[Transaction, ...] = ()
    business: frozenset[str] = frozenset()
    """Ids of events whose business row is there."""
    events: tuple[Row, ...] = ()
    handlers: tuple[Handler, ...] = ()
    deliveries: tuple[Delivery, ...] = ()
    effects: tuple[Effect, ...] = ()
    runs: tuple[Run, ...] = ()
    sightings: tuple[Sighting, ...] = ()
    doomed: frozenset[str] = frozenset()
    """Events that the handler `refuse` rejects."""
    crashed: bool = False
    """PostgreSQL lost what it had not flushed."""
    unsettled: tuple[str, ...] = ()
    """What had not come to rest within the bound."""
    fallen: tuple[str, ...] = ()
    """Programs that ended by themselves."""
    transactional: frozenset[str] = frozenset()
    plain: frozenset[str] = frozenset()
    once: frozenset[str] = frozenset()

    @cached_property
    def rows(self) -> dict[str, Row]:
        """Events by id."""
        return {row.id: row for row in self.events}

    @cached_property
    def said(self) -> dict[str, tuple[Said, Transaction]]:
        """What writers meant, by event id."""
        return {said.id: (said, tx) for tx in self.transactions for said in tx.events}

    @cached_property
    def outcomes(self) -> dict[tuple[str, str], Delivery]:
        """Deliveries by event and handler."""
        return {(each.event, each.handler): each for each in self.deliveries}

    @cached_property
    def effected(self) -> Counter[tuple[str, str]]:
        """How many rows there are for each event and handler."""
        return Counter((each.event, each.handler) for each in self.effects)

    @cached_property
    def ran(self) -> set[tuple[str, str]]:
        """Which runs came to their end."""
        return {(each.event, each.handler) for each in self.runs if each.ended}

    def owed(self) -> Iterator[tuple[Row, Handler]]:
        """Every event with each handler that must have an outcome for it."""
        by_name = defaultdict(list)
        for handler in self.handlers:
            by_name[handler.event_name].append(handler)
        for row in self.events:
            for handler in by_name[row.name]:
                if handler.first or (row.at > handler.registered and not self._shifted(row)):
                    yield row, handler

    def _shifted(self, row: Row) -> bool:
        return row.id in self.said and self.said[row.id][0].shifted


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


def doubled(facts: Facts) -> Iterator[Finding]:
    """No effect twice, none of what failed, no entry under two ids, no second run of what runs at most once."""
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
    places: dict[str, Sighting] = {}
    for sighting in facts.sightings:
        known = places.setdefault(sighting.event, sighting)
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


def transactions(entries: list[Entry]) -> tuple[Transaction, ...]:
    """Writers' transactions from their histories; one that nobody told the end of is unknown."""
    meant: dict[str, Entry] = {}
    ended: dict[str, str] = {}
    for entry in entries:
        if entry["what"] == "intent":
            meant[entry["tx"]] = entry
        elif "tx" in entry:
            ended[entry["tx"]] = entry["what"]
    return tuple(
        Transaction(
            tx,
            tuple(Said(**said) for said in entry["events"]),
            _outcome(entry, ended.get(tx)),
            flushed=entry["flushed"],
        )
        for tx, entry in meant.items()
    )


def _outcome(intent: Entry, ended: str | None) -> str:
    if not intent["kept"]:
        return "fail"
    return {None: "unknown", "ok": "ok", "fail": "fail", "unknown": "unknown"}[ended]


def runs(entries: list[Entry]) -> tuple[Run, ...]:
    """Handlers' runs from their histories: one for each beginning, and one for each end."""
    ended: Counter[tuple[Any, ...]] = Counter()
    for entry in entries:
        if entry["what"] == "ran":
            ended[entry["pid"], entry["handler"], entry["event"]] += 1
    made = []
    for entry in entries:
        if entry["what"] == "run":
            key = entry["pid"], entry["handler"], entry["event"]
            made.append(Run(entry["event"], entry["handler"], entry["sha"], ended=ended[key] > 0))
    return tuple(made)
