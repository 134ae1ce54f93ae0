"""What the relay sends is what Redis reads, and nothing that Redis has already is sent again."""

from __future__ import annotations

import hiredis
from hypothesis import given
from hypothesis import strategies as st

from outbox.position import Position
from relay.wire import ARGUMENTS, ENTRY, Entries, evalsha, values

SHA = "a" * 40
VALUES = st.lists(st.binary(max_size=40), min_size=ARGUMENTS - 1, max_size=ARGUMENTS - 1)
KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


def entries_of(rows: list[list[bytes]], tick: int = 7) -> tuple[Entries, list[bytes]]:
    """Entries with rising ids, and their arguments one after another."""
    entries, flat = Entries(), []
    for seq, row in enumerate(rows, 1):
        arguments = [b"%d-%d" % (tick, seq), *row]
        entries.ids.append(arguments[0])
        entries.packed.append(ENTRY % tuple(part for value in arguments for part in (len(value), value)))
        flat += arguments
    return entries, flat


@given(st.lists(VALUES, min_size=1, max_size=5), KEYS, st.binary(max_size=10))
def test_redis_reads_every_argument_as_it_was(rows: list[list[bytes]], key: str, own: bytes) -> None:
    entries, flat = entries_of(rows)
    reader = hiredis.Reader()
    reader.feed(evalsha(SHA, key, (b"0-0", own), entries))
    assert reader.gets() == [b"EVALSHA", SHA.encode(), b"1", key.encode(), b"0-0", own, *flat]
    assert reader.gets() is False
    assert values(entries) == flat


@given(st.integers(0, 6), st.integers(6, 8), st.integers(0, 7))
def test_what_remains_behind_a_position_is_what_is_higher(count: int, tick: int, seq: int) -> None:
    entries, _ = entries_of([[b""] * (ARGUMENTS - 1)] * count)
    position = Position(tick, seq)
    rest = entries.after(position)
    assert rest.ids == [number for number in entries.ids if Position.parse(number) > position]
    assert rest.packed == [entries.packed[entries.ids.index(number)] for number in rest.ids]
    if rest:
        assert rest.final == entries.final
