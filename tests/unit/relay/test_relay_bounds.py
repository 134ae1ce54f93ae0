"""Where a stream is cut when it holds too much."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outbox.position import ORIGIN, Position
from relay.bounds import Contents, Limit

LIMIT = Limit(entries=100, size=1000)
APPENDS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 400)), max_size=30)


def contents_of(appends: list[tuple[int, int]]) -> Contents:
    held = Contents(LIMIT)
    for number, (entries, size) in enumerate(appends, 1):
        held.add(Position(7, number), entries=entries, size=size)
    return held


@given(APPENDS)
def test_after_a_cut_no_more_than_half_remains(appends: list[tuple[int, int]]) -> None:
    held = contents_of(appends)
    held.trimmed(held.cut())
    assert held.entries <= LIMIT.entries // 2
    assert held.size <= LIMIT.size // 2


@given(APPENDS)
def test_a_cut_drops_no_more_than_it_must(appends: list[tuple[int, int]]) -> None:
    held = contents_of(appends)
    cut = held.cut()
    if cut == ORIGIN:
        return
    kept = appends[cut.seq - 1 :]
    assert sum(entries for entries, _ in kept) > LIMIT.entries // 2 or sum(size for _, size in kept) > LIMIT.size // 2


@given(APPENDS, st.integers(0, 30))
def test_what_remains_is_what_is_above_the_trim_point(appends: list[tuple[int, int]], upto: int) -> None:
    held = contents_of(appends)
    held.trimmed(Position(7, upto))
    assert held.entries == sum(entries for entries, _ in appends[upto:])
    assert held.size == sum(size for _, size in appends[upto:])


def test_either_limit_makes_it_full() -> None:
    assert contents_of([(100, 1)]).full
    assert contents_of([(1, 1000)]).full
    assert not contents_of([(99, 999)]).full
