"""The facts of a run as the checker compares them: what was said, and what is there. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.chaos.history import Entry


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
    result: str | None = None
    """What its handler returned."""


@dataclass(frozen=True)
class Effect:
    """A row that a transactional handler wrote."""

    event: str
    handler: str
    sha: str
    follow: str | None


@dataclass(frozen=True)
class Run:
    """A run, whether it came to its end or not."""

    event: str
    handler: str
    sha: str
    ended: bool


@dataclass(frozen=True)
class Sighting:
    """An entry that was seen on a stream."""

    stream: str
    """The event's name; of a catch-up stream, `name:handler`."""
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
    answering: frozenset[str] = frozenset()
    """Handlers that return what the payload is compared by."""

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

    @cached_property
    def began(self) -> set[tuple[str, str]]:
        """Which handlers began with which events."""
        return {(each.event, each.handler) for each in self.runs}

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
