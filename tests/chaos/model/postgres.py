"""PostgreSQL as the protocol uses it: transactions with snapshots, our tables, and what a crash takes back.

A statement is one moment; a transaction is what it has written so far, and one moment at its COMMIT. A commit that does
not wait for the disk is undone by a crash, unless one that does came after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg

from outbox.position import Position
from relay.snapshot import NOTHING, Snapshot


@dataclass(slots=True)
class Event:
    """A row of `event`. `turn` counts the events of its key, in the order of that key's lock."""

    id: str
    seq: int
    xid: int
    name: str
    key: str
    payload: str
    at: int
    turn: int
    flushed: bool = False


@dataclass(slots=True)
class Tick:
    """A row of `tick`."""

    id: int
    snapshot: Snapshot
    at: float


@dataclass(slots=True)
class Handler:
    """A row of `handler`."""

    name: str
    event_name: str
    registered: float
    attached: bool = False
    done: Position | None = None
    fed: Position | None = None
    started: Position | None = None
    """Where it was told to begin: what stands there or before is not for it."""


@dataclass(slots=True)
class Delivery:
    """A row of `delivery`."""

    event_id: str
    handler: str
    state: str
    attempts: int = 0
    crashes: int = 0
    begun: bool = False
    due: float = 0.0
    lease: str | None = None
    error: str | None = None


@dataclass(slots=True, eq=False)
class Transaction:
    """What a session has written and not committed. `effects` are what its handler did."""

    owner: object
    xid: int | None = None
    events: list[Event] = field(default_factory=list)
    effects: list[tuple[str, str]] = field(default_factory=list)


class Session:
    """A connection: broken when the server ends it."""

    def __init__(self, server: Postgres, name: str) -> None:
        self.server = server
        self.name = name
        self.used = server.now()
        self.broken = False
        server.sessions.append(self)

    def check(self) -> None:
        """Raise, if the server has ended it; else it is in use now."""
        if self.broken:
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        self.used = self.server.now()


class Postgres:
    """One server. `now()` is its clock, in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.next_xid = 100
        self.completed = 99
        self.seq = 0
        self.open: list[Transaction] = []
        self.events: dict[str, Event] = {}
        self.effects: list[tuple[str, str]] = []
        self.ticks = [Tick(int(now() * 1000), self.snapshot(), now())]
        self.position = Position(self.ticks[0].id, 0)
        self.streams: dict[str, Position] = {}
        self.handlers: dict[str, Handler] = {}
        self.deliveries: dict[tuple[str, str], Delivery] = {}
        self.letters: dict[tuple[str, str], str] = {}
        self.sessions: list[Session] = []
        self.leader: Session | None = None
        self._ids = 0
        self._unflushed: list[Callable[[], None]] = []
        self.turns: dict[str, int] = {}
        self.on_hole: Callable[[str, str], None] = lambda *_: None

    # Transactions

    def begin(self, owner: object) -> Transaction:
        transaction = Transaction(owner)
        self.open.append(transaction)
        return transaction

    def check_open(self, transaction: Transaction) -> None:
        """Raise, if the server has ended it."""
        if transaction not in self.open:
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    def insert(self, transaction: Transaction, event_id: str, name: str, key: str, payload: str) -> None:
        """Add an event. Who writes under a key holds that key's lock until the end of its transaction."""
        if transaction.xid is None:
            transaction.xid = self._assign()
        self.seq += 1
        turn = self.turns.get(key, 0) + sum(event.key == key for event in transaction.events)
        at = int(self.now() * 1_000_000)
        transaction.events.append(Event(event_id, self.seq, transaction.xid, name, key, payload, at, turn))

    def locked(self, key: str) -> bool:
        """Whether a transaction holds this key's lock."""
        return any(event.key == key for transaction in self.open for event in transaction.events)

    def commit(self, transaction: Transaction, *, flush: bool = True) -> None:
        """End it. Without `flush` it is durable only when a later commit is."""
        self._end(transaction)
        self.events |= {event.id: event for event in transaction.events}
        self.effects += transaction.effects
        for event in transaction.events:
            self.turns[event.key] = event.turn + 1
        self._unflushed.append(lambda: self._take_back(transaction))
        if flush:
            self.flush()

    def rollback(self, transaction: Transaction) -> None:
        """End it without a trace but for its numbers."""
        if transaction in self.open:
            self._end(transaction)

    def flush(self) -> None:
        """All that was committed is on the disk."""
        if self._unflushed:
            self._unflushed.clear()
            for event in self.events.values():
                event.flushed = True

    def later(self, undo: Callable[[], None]) -> None:
        """Something was committed without waiting for the disk; `undo` takes it back."""
        self._unflushed.append(undo)

    def snapshot(self) -> Snapshot:
        """pg_current_snapshot()"""
        xmax = self.completed + 1
        running = sorted(each.xid for each in self.open if each.xid is not None and each.xid < xmax)
        return Snapshot(running[0] if running else xmax, xmax, tuple(running))

    def burn(self) -> None:
        """A transaction that writes nothing of interest."""
        self.completed = max(self.completed, self._assign())

    # What happens to a server

    def end_session(self, session: Session) -> None:
        """Its client is gone, or was told to go."""
        session.broken = True
        if session in self.sessions:
            self.sessions.remove(session)
        if self.leader is session:
            self.leader = None

    def crash(self) -> None:
        """All sessions and open transactions end; what was not flushed was never there, and its numbers come again."""
        for session in list(self.sessions):
            self.end_session(session)
        for transaction in list(self.open):
            self.rollback(transaction)
        undone = bool(self._unflushed)
        while self._unflushed:
            self._unflushed.pop()()
        if undone:
            self.seq = max((event.seq for event in self.events.values()), default=0)

    def end_idle(self, seconds: float) -> None:
        """idle_session_timeout of those who lead or would."""
        for session in [each for each in self.sessions if self.now() - each.used > seconds]:
            self.end_session(session)

    # Reading

    def tick_of(self, event: Event) -> Tick | None:
        """The tick whose batch an event is in."""
        return next((tick for tick in self.ticks if tick.snapshot.sees(event.xid)), None)

    def place(self, event: Event) -> Position | None:
        """Where an event stands in the log."""
        tick = self.tick_of(event)
        return None if tick is None else Position(tick.id, event.seq)

    def before(self, tick_id: int) -> Snapshot:
        """The snapshot of the tick before this one."""
        return next((tick.snapshot for tick in reversed(self.ticks) if tick.id < tick_id), NOTHING)

    # Deliveries

    def record(self, event_id: str, handler: str, state: str, **facts: Any) -> Delivery | None:
        """INSERT … ON CONFLICT DO NOTHING: the new row, or None when there is one."""
        if (event_id, handler) in self.deliveries:
            return None
        row = self.deliveries[event_id, handler] = Delivery(event_id, handler, state, **facts)
        return row

    def new_id(self) -> str:
        """A UUID."""
        self._ids += 1
        return f"{self._ids:08x}-0000-7000-8000-000000000000"

    def _assign(self) -> int:
        self.next_xid += 1
        return self.next_xid - 1

    def _end(self, transaction: Transaction) -> None:
        self.open.remove(transaction)
        if transaction.xid is not None:
            self.completed = max(self.completed, transaction.xid)

    def _take_back(self, transaction: Transaction) -> None:
        for event in reversed(transaction.events):
            del self.events[event.id]
            self.turns[event.key] = event.turn
        for effect in transaction.effects:
            self.effects.remove(effect)
