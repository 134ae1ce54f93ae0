"""The pure part of `relay.handlers`: where a new handler begins, and who is fed on its own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outbox.position import END, ORIGIN, Position
from relay.handlers import beginning

POSITIONS = st.builds(Position, st.integers(1, 9), st.integers(0, 9))


@given(st.one_of(st.none(), st.integers(1, 9)), POSITIONS)
def test_the_first_handler_of_an_event_begins_with_all_that_is_retained(
    before: int | None, published: Position
) -> None:
    assert beginning(first=True, before=before, published=published) == ORIGIN


def test_a_later_one_begins_behind_the_last_tick_before_it_registered() -> None:
    assert beginning(first=False, before=5, published=Position(7, 3)) == Position(5, END)


def test_it_does_not_begin_ahead_of_what_is_published() -> None:
    assert beginning(first=False, before=7, published=Position(7, 3)) == Position(7, 3)


def test_without_a_tick_before_its_registration_it_begins_with_all_that_is_retained() -> None:
    assert beginning(first=False, before=None, published=Position(7, 3)) == ORIGIN


@given(st.integers(1, 9), POSITIONS)
def test_it_misses_nothing_of_any_tick_that_was_taken_since(before: int, published: Position) -> None:
    start = beginning(first=False, before=before, published=published)
    assert start < Position(before + 1, 0)
    assert start <= published
