"""What the relay's statements do, on the simulated PostgreSQL. Keyed by words that only that statement has.

Each takes the server, the session and the parameters, and gives rows. One that is not here makes the model fail:
whoever changes a statement's meaning is to change it here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from outbox.position import Position
from relay.snapshot import Snapshot
from tests.chaos.model.postgres import Event, Handler, Postgres, Session, Tick

Rows = list[tuple[Any, ...]]
Statement = Callable[[Postgres, Session, Any], Rows]

SMALL = 2
"""Events up to which a batch comes with its tick."""


def _lead(server: Postgres, session: Session, _: Any) -> Rows:
    if server.leader is None:
        server.leader = session
    return [(server.leader is session,)]


def _leads(server: Postgres, session: Session, _: Any) -> Rows:
    return [(server.leader is session,)]


def _position(server: Postgres, session: Session, _: Any) -> Rows:
    return [tuple(server.position)]


def _streams(server: Postgres, session: Session, _: Any) -> Rows:
    return [(name, *at) for name, at in server.streams.items()]


def _ticks(server: Postgres, session: Session, asked: Mapping[str, Any]) -> Rows:
    start, upto = asked["start"], asked["upto"]
    before = [tick for tick in server.ticks if tick.id < start][-1:]
    found = [tick for tick in server.ticks if tick.id >= start and (upto is None or tick.id <= upto)]
    return [(tick.id, str(tick.snapshot)) for tick in before + found[: asked["most"]]]


def _row(event: Event, *more: Any) -> tuple[Any, ...]:
    values = (event.seq, event.id, event.name, event.key, event.payload, "", event.at, *more)
    return tuple(str(value).encode() for value in values)


def _take(server: Postgres, session: Session, asked: Mapping[str, Any]) -> Rows:
    xmax, open_then, now = int(asked["xmax"]), set(map(int, asked["xip"])), server.snapshot()
    fresh = [event for event in server.events.values() if event.xid >= xmax or event.xid in open_then]
    if not fresh:
        return []
    tick = Tick(max(asked["floor"], int(server.now() * 1000)), now, server.now())
    server.ticks.append(tick)
    server.burn()
    server.flush()
    whole = len(fresh) <= SMALL
    last = (str(tick.id).encode(), str(now).encode(), b"t" if whole else b"f")
    named = sorted((event for event in fresh if whole and event.name in asked["names"]), key=lambda event: event.seq)
    return [_row(event) + last for event in named] or [(None,) * 7 + last]


def _batch(server: Postgres, session: Session, asked: Mapping[str, Any]) -> Rows:
    first, last, extra = int(asked["from_xmax"]), int(asked["to_xmax"]), set(map(int, asked["from_xip"]))
    upto = Snapshot.parse(asked["to"])
    found = [
        event
        for event in server.events.values()
        if (first <= event.xid < last or event.xid in extra)
        and upto.sees(event.xid)
        and event.name in asked["names"]
        and event.seq > asked["after"]
    ]
    return [_row(event) for event in sorted(found, key=lambda event: event.seq)]


def _catch_up(server: Postgres, session: Session, asked: Mapping[str, Any]) -> Rows:
    rows = []
    for number, since_text, upto_text in zip(asked["ticks"], asked["from"], asked["to"], strict=True):
        since, upto = Snapshot.parse(since_text), Snapshot.parse(upto_text)
        rows += [
            (number, event)
            for event in server.events.values()
            if (since.xmax <= event.xid < upto.xmax or event.xid in since.xip)
            and upto.sees(event.xid)
            and event.name == asked["name"]
            and (number > asked["after_tick"] or event.seq > asked["after_seq"])
            and (event.id, asked["handler"]) not in server.deliveries
        ]
    return [_row(event, number) for number, event in sorted(rows, key=lambda row: (row[0], row[1].seq))]


def _bookmark(server: Postgres, session: Session, asked: Mapping[str, Any]) -> Rows:
    position, streams = server.position, dict(server.streams)

    def undo() -> None:
        server.position, server.streams = position, streams

    server.position = Position(asked["tick"], asked["seq"])
    server.streams |= {
        name: Position(tick, seq) for name, tick, seq in zip(asked["names"], asked["ticks"], asked["seqs"], strict=True)
    }
    server.later(undo)
    return []


# Handlers


def _columns(row: Handler) -> tuple[Any, ...]:
    return (row.name, row.event_name, row.attached, *(row.done or (None, None)), *(row.fed or (None, None)), False)


def _all(server: Postgres, session: Session, _: Any) -> Rows:
    return [_columns(row) for row in sorted(server.handlers.values(), key=lambda row: row.registered)]


def _admitted(server: Postgres, session: Session, _: Any) -> Rows:
    rows = [row for row in server.handlers.values() if row.done is not None]
    return [_columns(row)[:7] for row in sorted(rows, key=lambda row: row.event_name)]


def _last_before(server: Postgres, session: Session, asked: list[Any]) -> Rows:
    row = server.handlers[asked[0]]
    return [(tick.id,) for tick in server.ticks if tick.at <= row.registered][-1:]


def _changed(server: Postgres, row: Handler) -> Rows:
    server.flush()
    return [_columns(row)]


def _admit(server: Postgres, session: Session, asked: list[Any]) -> Rows:
    row = server.handlers[asked[4]]
    row.done, row.fed = Position(*asked[:2]), Position(*asked[2:4])
    row.started = row.started or row.done
    return _changed(server, row)


def _attach(server: Postgres, session: Session, asked: list[Any]) -> Rows:
    row = server.handlers[asked[0]]
    row.attached, row.fed = True, None
    return _changed(server, row)


def _feed_moved(server: Postgres, session: Session, asked: list[Any]) -> Rows:
    row = server.handlers[asked[2]]
    before = row.fed

    def undo() -> None:
        row.fed = before

    row.fed = Position(*asked[:2])
    server.later(undo)
    return [_columns(row)]


def _stream_ends(server: Postgres, session: Session, asked: list[Any]) -> Rows:
    server.streams[asked[0]] = Position(*asked[1:])
    server.flush()
    return []


def _detach(server: Postgres, session: Session, asked: list[Any]) -> Rows:
    rows = [row for row in server.handlers.values() if row.event_name == asked[0] and row.attached]
    for row in rows:
        row.attached, row.fed = False, row.done
    server.flush()
    return [_columns(row) for row in rows]


def _detach_behind(server: Postgres, session: Session, asked: list[Any]) -> Rows:
    row = server.handlers[asked[2]]
    row.attached, row.fed = False, Position(*asked[:2])
    return _changed(server, row)


def _restart_feed(server: Postgres, session: Session, asked: list[Any]) -> Rows:
    row = server.handlers[asked[0]]
    row.fed = row.done
    return _changed(server, row)


def _attached(server: Postgres, session: Session, asked: list[Any]) -> Rows:
    return [(server.handlers[asked[0]].attached,)]


def _note(server: Postgres, session: Session, asked: Mapping[str, Any]) -> Rows:
    row, done = server.handlers[asked["name"]], Position(asked["tick"], asked["seq"])
    if row.done is not None and row.done < done:
        row.done = done
    server.flush()
    return []


def _fill_holes(server: Postgres, session: Session, asked: Mapping[str, Any]) -> Rows:
    found: dict[str, int] = {}
    first, last, extra = int(asked["before_xmax"]), int(asked["upto_xmax"]), set(map(int, asked["before_xip"]))
    columns = ("handlers", "names", "befores", "dones", "done_seqs", "priors", "uptos", "upto_seqs")
    for handler, name, before, done, done_seq, prior, upto, upto_seq in zip(*map(asked.get, columns), strict=True):
        sees = [Snapshot.parse(text).sees for text in (before, done, prior, upto)]
        for event in list(server.events.values()):
            in_before, in_done, in_prior, in_upto = (see(event.xid) for see in sees)
            if (
                event.name == name
                and (first <= event.xid < last or event.xid in extra)
                and not in_before
                and in_upto
                and not (in_done and event.seq <= done_seq)
                and (in_prior or event.seq <= upto_seq)
                and server.record(event.id, handler, "retrying", due=server.now())
            ):
                server.on_hole(event.id, handler)
                found[handler] = found.get(handler, 0) + 1
    server.flush()
    return list(found.items())


STATEMENTS: dict[str, Statement] = {
    "pg_try_advisory_lock": _lead,
    "locktype = 'advisory'": _leads,
    "SELECT tick, seq FROM": _position,
    "SELECT name, tick, seq FROM": _streams,
    "SELECT id, snapshot::text FROM": _ticks,
    "WITH fresh AS MATERIALIZED": _take,
    "DECLARE main_feed": _batch,
    "DECLARE catch_up": _catch_up,
    "marked AS (": _bookmark,
    "start_at IS NOT NULL FROM": _all,
    "done_tick IS NOT NULL ORDER BY": _admitted,
    "SELECT t.id FROM": _last_before,
    "SET done_tick = %s, done_seq = %s, fed_tick": _admit,
    "SET attached = true": _attach,
    "synchronous_commit', 'off', true)) UPDATE": _feed_moved,
    ".stream (name, tick, seq) VALUES": _stream_ends,
    "SET attached = false, fed_tick = done_tick": _detach,
    "SET attached = false, fed_tick = %s": _detach_behind,
    "SET fed_tick = done_tick": _restart_feed,
    "SELECT attached FROM": _attached,
    "SET done_tick = %(tick)s": _note,
    "RETURNING handler\n)\nSELECT handler, count(*)": _fill_holes,
    "SET leader = %s, backend_pid": lambda *_: [(True,)],
    ".hold WHERE what = 'relay'": lambda *_: [],
    "set_config('lock_timeout'": lambda *_: [],
    "pg_sequence_last_value": lambda server, *_: [(server.seq,)],
}


def statement(text: str, known: Mapping[str, Any] = STATEMENTS) -> Any:
    """What a statement's text does. Raises `LookupError` unless exactly one is meant."""
    found: Iterable[str] = [words for words in known if words in text]
    match list(found):
        case [words]:
            return known[words]
        case several:
            raise LookupError(f"the simulated PostgreSQL knows {len(several)} statements like this one: {text}")
