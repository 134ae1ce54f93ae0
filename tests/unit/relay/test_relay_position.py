"""`outbox.position`: a place in the log, and its text as a stream id."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outbox.position import END, ORIGIN, Position

POSITIONS = st.builds(Position, st.integers(0, END), st.integers(0, END))


@given(POSITIONS)
def test_text_reads_back_as_the_same_position(position: Position) -> None:
    assert Position.parse(str(position)) == position
    assert Position.parse(str(position).encode()) == position


@given(POSITIONS, POSITIONS)
def test_positions_are_ordered_as_redis_orders_its_ids(one: Position, other: Position) -> None:
    assert (one < other) == (one.tick < other.tick or (one.tick == other.tick and one.seq < other.seq))


@given(POSITIONS)
def test_the_origin_is_before_all_and_the_end_of_a_tick_behind_all_of_it(position: Position) -> None:
    assert ORIGIN <= position <= Position(position.tick, END) < Position(position.tick + 1, 0)


def test_an_id_without_a_sequence_is_its_first() -> None:
    assert Position.parse("17") == Position(17, 0)


@given(POSITIONS)
def test_both_parts_fit_into_a_redis_id(position: Position) -> None:
    assert max(position) < 2**64
