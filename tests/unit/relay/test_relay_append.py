"""The pure part of compare and append: which entries remain behind a position, and a call in the bytes Redis reads."""

from __future__ import annotations

from typing import Any

import hiredis
from hypothesis import given
from hypothesis import strategies as st

from outbox.position import Position
from relay import wire
from relay.wire import ARGUMENTS, ENTRY, Entries

VALUES = st.lists(st.binary(max_size=30), min_size=ARGUMENTS - 1, max_size=ARGUMENTS - 1)


def packed(number: Position, values: list[bytes]) -> bytes:
    parts = [str(number).encode(), *values]
    return ENTRY % tuple(x for part in parts for x in (len(part), part))


def entries(positions: list[Position]) -> Entries:
    return Entries([str(number).encode() for number in positions], [packed(number, [b"x"] * 5) for number in positions])


POSITIONS = st.builds(Position, st.integers(1, 20), st.integers(0, 2000))
RISING = st.lists(POSITIONS, unique=True, max_size=20).map(sorted)


@given(RISING, POSITIONS)
def test_what_remains_is_what_stands_behind(positions: list[Position], position: Position) -> None:
    behind = [each for each in positions if each > position]
    assert entries(positions).after(position) == entries(behind)


@given(RISING, POSITIONS, POSITIONS)
def test_what_is_left_out_does_not_depend_on_the_steps(
    positions: list[Position], one: Position, other: Position
) -> None:
    assert entries(positions).after(one).after(other) == entries(positions).after(max(one, other))


def test_ids_are_compared_as_numbers() -> None:
    assert entries([Position(9, 10)]).after(Position(9, 9)).ids == [b"9-10"]
    assert not entries([Position(9, 9)]).after(Position(10, 1))


@given(st.lists(VALUES, min_size=1, max_size=5), st.binary(max_size=20))
def test_a_call_reads_as_what_it_was_made_of(events: list[list[bytes]], name: bytes) -> None:
    positions = [Position(7, seq) for seq in range(len(events))]
    made = Entries(
        [str(number).encode() for number in positions], [packed(*pair) for pair in zip(positions, events, strict=True)]
    )
    reader = hiredis.Reader()
    reader.feed(wire.evalsha("sha", "key:{ä}", (b"0-0", name), made))
    read: Any = reader.gets()
    assert read[:6] == [b"EVALSHA", b"sha", b"1", "key:{ä}".encode(), b"0-0", name]
    rest = read[6:]
    assert [rest[i : i + ARGUMENTS] for i in range(0, len(rest), ARGUMENTS)] == [
        [str(number).encode(), *values] for number, values in zip(positions, events, strict=True)
    ]
    assert reader.gets() is False
    assert made.final == str(positions[-1]).encode()
