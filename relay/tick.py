"""Ticks: one snapshot = one batch. Takes them, and reads what they hold in chunks of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import psycopg

from outbox.position import ORIGIN, Position
from relay import scripts
from relay.snapshot import NOTHING, Snapshot
from relay.wire import ENTRY, Entries

CHUNK_BYTES = 1 << 20
"""Bytes of events that are about what is fetched at a time, unless they are of many names."""

PART_BYTES = 64 << 10
"""Bytes for each event name in it after which a chunk of the main feed is closed. The relay is a quarter faster with
many calls of this size on their way than with two of a megabyte (decision 023)."""

PART_EVENTS = 8
"""Events for each name in it that a chunk has before it is closed for its size: Redis tells a stream's last id together
with its first and last entry, so that what a call costs beside its events grows with these, too."""

MOST_BYTES = 4 << 20
"""Bytes after which a chunk is closed however many names it has, and about what is fetched at a time at the most."""

SMALL = 256
"""Rows of a batch that comes with its tick, if they have no more than `CHUNK_BYTES`; a larger one gets a cursor."""

FIRST_ROWS = 32
"""Rows that are fetched at first, so that the first events are soon in Redis; then twice as many each time."""

MOST_ROWS = 2000
"""Rows that are fetched at a time at the most, unless they are of many names."""

PART_ROWS = 250
"""Rows for each name that are fetched at a time: a part of small events. With fewer, the calls for many names carry so
little that their number is what takes time."""


@dataclass(frozen=True)
class Tick:
    """A batch: what `snapshot` sees and `since` did not."""

    id: int
    snapshot: Snapshot
    since: Snapshot


@dataclass(slots=True)
class Chunk:
    """Consecutive events on their way to Redis, by event name."""

    parts: dict[bytes, Entries] = field(default_factory=dict)
    rows: int = 0
    size: int = 0
    last: Position = ORIGIN


@dataclass(frozen=True, slots=True)
class Taken:
    """A tick that was just taken, and the rows of its whole batch, in order, if that is small."""

    tick: Tick
    rows: psycopg.Cursor | None


def take(cursor: psycopg.Cursor, schema: str, last: Tick, floor: int, names: list[str]) -> Taken | None:
    """Write the next tick if anything is new since `last`, durably, and return it. Its id is at least `floor`.

    A small batch, what there is of the events of these names, comes with it, until the cursor is used again. One cursor
    should serve for all ticks: psycopg learns once how to send the values, half of what a poll costs this process.
    """
    cursor.execute(
        _statement(schema, any_open=bool(last.snapshot.xip)),
        {
            "floor": max(last.id + 1, floor),
            "xmax": str(last.snapshot.xmax),
            "xip": [str(xid) for xid in last.snapshot.xip],
            "names": names,
        },
        prepare=True,
    )
    result = cursor.pgresult
    if result is None or not result.ntuples:
        return None
    number, snapshot, whole = (result.get_value(0, column) for column in (7, 8, 9))
    assert number is not None
    assert snapshot is not None
    tick = Tick(int(number), Snapshot.parse(snapshot.decode("ascii")), last.snapshot)
    return Taken(tick, cursor if whole == b"t" else None)


@cache
def _statement(schema: str, *, any_open: bool) -> bytes:
    """The statement that takes a tick. Without transactions that were open, half of it is left out."""
    text = scripts.sql("tick", schema).replace(b"{open}", scripts.sql("tick_open", schema) if any_open else b"")
    return text.replace(b"{small}", b"%d" % SMALL).replace(b"{bytes}", b"%d" % CHUNK_BYTES)


def load(
    connection: psycopg.Connection, schema: str, start: int, upto: int | None = None, most: int = 1000
) -> list[Tick]:
    """The ticks from id `start` to `upto`, oldest first, at most `most` of them."""
    rows = connection.execute(
        f"SELECT id, snapshot::text FROM (SELECT id, snapshot FROM {schema}.tick WHERE id < %(start)s"
        "  ORDER BY id DESC LIMIT 1) AS before"
        f" UNION ALL (SELECT id, snapshot::text FROM {schema}.tick"
        "  WHERE id >= %(start)s AND (%(upto)s::bigint IS NULL OR id <= %(upto)s) ORDER BY id LIMIT %(most)s)"
        " ORDER BY id".encode(),
        {"start": start, "upto": upto, "most": most},
    ).fetchall()
    ticks: list[Tick] = []
    since = NOTHING
    for number, text in rows:
        snapshot = Snapshot.parse(text)
        if number >= start:
            ticks.append(Tick(number, snapshot, since))
        since = snapshot
    return ticks


def read(connection: psycopg.Connection, schema: str, tick: Tick, names: list[str], after: int) -> Iterator[Chunk]:
    """The tick's events of these names with a seq above `after`, in chunks, in order."""
    parameters = {
        "from_xmax": str(tick.since.xmax),
        "from_xip": [str(xid) for xid in tick.since.xip if tick.snapshot.sees(xid)],
        "to_xmax": str(tick.snapshot.xmax),
        "to": str(tick.snapshot),
        "names": names,
        "after": after,
    }
    with open_cursor(connection, "main_feed", scripts.sql("batch", schema), parameters) as cursor:
        for rows in fetches(cursor, "main_feed"):
            yield from chunks(rows, tick.id)


class open_cursor:
    """A cursor that holds no snapshot: sorted once, kept by the server until it is closed."""

    def __init__(self, connection: psycopg.Connection, name: str, statement: bytes, parameters: dict[str, Any]) -> None:
        self.connection = connection
        self.name = name
        self.cursor = connection.cursor()
        self.cursor.execute(f"DECLARE {name} NO SCROLL CURSOR WITH HOLD FOR ".encode() + statement, parameters)

    def __enter__(self) -> psycopg.Cursor:
        return self.cursor

    def __exit__(self, *_: object) -> None:
        self.cursor.close()
        if not self.connection.broken and not self.connection.closed:
            self.connection.execute(f"CLOSE {self.name}".encode())


def fetches(cursor: psycopg.Cursor, name: str) -> Iterator[psycopg.Cursor]:
    """Fetch the rows of a declared cursor in steps of about `CHUNK_BYTES`, more when many names share them. Rows that
    the step before had tell how many that is."""
    rows = FIRST_ROWS
    while True:
        cursor.execute(f"FETCH FORWARD {rows} FROM {name}".encode())
        if not cursor.rowcount:
            return
        yield cursor
        result = cursor.pgresult
        assert result is not None
        sample = range(0, result.ntuples, max(1, result.ntuples // 16))
        average = sum(len(result.get_value(i, 4) or b"") + 100 for i in sample) // len(sample)
        names = len({result.get_value(i, 2) for i in range(min(64, result.ntuples))})
        size = min(MOST_BYTES, max(CHUNK_BYTES, names * PART_BYTES))
        rows = max(1, min(max(MOST_ROWS, names * PART_ROWS), rows * 2, size // average))


def chunks(cursor: psycopg.Cursor, tick: int | None, part_bytes: int = PART_BYTES) -> Iterator[Chunk]:
    """Cut fetched rows into chunks. The values go through as the bytes that PostgreSQL sent; nothing is decoded.

    `tick` is the tick of all rows; None when each row carries its own in an eighth column. A chunk is closed at
    `part_bytes` for each event name in it, and at `MOST_BYTES` at the latest.
    """
    result = cursor.pgresult
    assert result is not None
    value = result.get_value
    chunk = Chunk()
    parts = chunk.parts
    size = rows = most = 0
    prefix = b"" if tick is None else b"%d-" % tick
    seq: Any = b"0"
    row_tick: Any = b"0"
    # A tick without an event of these names comes with a row without an event.
    for i in range(result.ntuples if result.ntuples and value(0, 0) is not None else 0):
        if tick is None:
            row_tick = value(i, 7)
            prefix = row_tick + b"-"
        seq = value(i, 0)
        event: Any = value(i, 1)
        name: Any = value(i, 2)
        key: Any = value(i, 3)
        payload: Any = value(i, 4)
        headers: Any = value(i, 5)
        at: Any = value(i, 6)
        number = prefix + seq
        packed = ENTRY % (
            len(number), number, len(event), event, len(key), key,
            len(payload), payload, len(headers), headers, len(at), at,
        )  # fmt: skip
        part = parts.get(name)
        if part is None:
            parts[name] = part = Entries()
            most = min(MOST_BYTES, most + part_bytes)
        part.ids.append(number)
        part.packed.append(packed)
        rows += 1
        size += len(packed)
        if size >= most and (rows >= PART_EVENTS * len(parts) or size >= MOST_BYTES):
            yield _closed(chunk, rows, size, tick, row_tick, seq)
            chunk = Chunk()
            parts = chunk.parts
            size = rows = most = 0
    if rows:
        yield _closed(chunk, rows, size, tick, row_tick, seq)


def _closed(chunk: Chunk, rows: int, size: int, tick: int | None, row_tick: bytes, seq: bytes) -> Chunk:
    chunk.rows, chunk.size = rows, size
    chunk.last = Position(int(row_tick) if tick is None else tick, int(seq))
    return chunk
