"""`relay.progress`: what a group's state says about how far its handler is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.position import END, ORIGIN, Position
from relay import progress
from relay.progress import Progress, finished, finished_everywhere

P = Position
MISSING = Progress(ORIGIN, 0, None, None, ORIGIN)
POSITIONS = st.builds(Position, st.integers(1, 9), st.integers(1, 9))


@st.composite
def states(draw: st.DrawFn) -> Progress:
    """A stream that Redis can hold, and one of its groups, if there is one."""
    last = draw(st.one_of(st.just(ORIGIN), POSITIONS))
    present = draw(
        st.one_of(st.just(ORIGIN), st.just(last), POSITIONS.filter(lambda p: p <= last)) if last else st.just(ORIGIN)
    )
    if draw(st.booleans()):
        return Progress(last, 0, None, None, present)
    delivered = draw(st.one_of(st.just(last), st.just(ORIGIN), POSITIONS))
    pending = draw(
        st.one_of(st.none(), POSITIONS.filter(lambda p: p <= delivered)) if delivered > P(1, 1) else st.none()
    )
    return Progress(last, 0, delivered, pending, present)


def test_the_scripts_answer_is_read() -> None:
    assert progress.parse([b"7-2", 3, b"7-1", b"6-9", b"7-2"]) == Progress(P(7, 2), 3, P(7, 1), P(6, 9), P(7, 2))
    assert progress.parse([b"0-0", 0, b"", b"", b""]) == MISSING


def held(last: Position, length: int, delivered: Position | None, pending: Position | None) -> Progress:
    """A stream that has its last entry still, or none."""
    return Progress(last, length, delivered, pending, last if length else ORIGIN)


@pytest.mark.parametrize(
    ("state", "published", "expected"),
    [
        (MISSING, P(9, 9), None),
        (held(P(5, 3), 3, None, None), P(5, 3), None),
        (held(P(5, 3), 3, P(5, 3), P(5, 2)), P(9, 9), P(5, 1)),
        (held(P(5, 3), 3, P(5, 3), P(5, 0)), P(9, 9), P(4, END)),
        (held(P(5, 3), 3, P(5, 1), P(4, 8)), P(9, 9), P(4, 7)),
        (held(P(5, 3), 3, P(5, 1), None), P(9, 9), P(5, 1)),
        (held(P(5, 3), 3, ORIGIN, None), P(9, 9), ORIGIN),
        (held(P(5, 3), 3, P(5, 3), None), P(9, 9), P(9, 9)),
        (held(P(5, 3), 3, P(5, 3), None), P(4, 9), P(5, 3)),
        (held(P(5, 3), 0, P(5, 3), None), P(5, 3), P(5, 3)),
        (held(ORIGIN, 0, P(6, 1), None), P(7, 0), P(7, 0)),
        (held(P(5, 3), 0, P(5, 1), None), P(9, 9), P(9, 9)),
    ],
    ids=[
        "no stream", "no group", "pending", "pending at a tick's begin", "pending below unread", "unread",
        "all unread", "all done", "published read earlier", "trimmed", "empty stream",
        "trimmed before it was read",
    ],
)  # fmt: skip
def test_how_far_a_group_has_finished(state: Progress, published: Position, expected: Position | None) -> None:
    assert finished(state, published) == expected


@given(states(), POSITIONS)
def test_nothing_that_is_open_counts_as_finished(state: Progress, published: Position) -> None:
    reached = finished(state, published)
    if reached is not None:
        assert state.pending is None or reached < state.pending
        assert state.delivered is not None
        if state.delivered < state.present:
            assert reached <= state.delivered


ALL_DONE = held(P(5, 3), 0, P(5, 3), None)
UNREAD = held(P(5, 3), 2, P(5, 1), None)
PENDING = held(P(5, 3), 3, P(5, 3), P(5, 2))


@pytest.mark.parametrize(
    ("own", "main", "attached", "fed", "expected"),
    [
        (MISSING, ALL_DONE, True, None, P(9, 0)),
        (MISSING, PENDING, True, None, P(5, 1)),
        (MISSING, UNREAD, True, None, P(5, 1)),
        (MISSING, MISSING, True, None, None),
        (ALL_DONE, held(P(8, 1), 1, P(8, 1), P(8, 1)), True, None, P(8, 0)),
        (PENDING, held(P(8, 1), 1, P(8, 1), P(8, 1)), True, None, P(5, 1)),
        (UNREAD, held(P(8, 1), 0, P(8, 1), None), True, None, P(5, 1)),
        (held(P(5, 3), 3, None, None), ALL_DONE, True, None, None),
        (held(P(5, 3), 0, P(5, 1), None), ALL_DONE, True, None, P(9, 0)),
        (MISSING, MISSING, False, P(6, 1), P(6, 1)),
        (MISSING, MISSING, False, None, None),
        (ALL_DONE, MISSING, False, P(6, 1), P(6, 1)),
        (PENDING, MISSING, False, P(6, 1), P(5, 1)),
        (UNREAD, MISSING, False, P(6, 1), P(5, 1)),
        (held(P(5, 3), 3, None, None), MISSING, False, P(6, 1), None),
        (ALL_DONE, held(P(4, 9), 3, P(4, 9), P(4, 2)), False, P(6, 1), P(4, 1)),
        (ALL_DONE, held(P(4, 9), 3, P(4, 2), None), False, P(6, 1), P(6, 1)),
    ],
    ids=[
        "attached, done", "attached, pending", "attached, unread", "attached, group lost",
        "attached, own done", "attached, own pending", "attached, own unread", "attached, own group lost",
        "attached, own trimmed before it was read",
        "detached, nothing fed", "not admitted", "detached, done", "detached, pending", "detached, unread",
        "detached, group lost", "detached, main pending", "detached, main unread is fed again",
    ],
)  # fmt: skip
def test_how_far_a_handler_has_finished_on_both_its_streams(
    own: Progress, main: Progress, attached: bool, fed: Position | None, expected: Position | None
) -> None:
    assert finished_everywhere(own, main, attached=attached, published=P(9, 0), fed=fed) == expected


@given(states(), states(), st.booleans(), POSITIONS, st.one_of(st.none(), POSITIONS))
def test_nothing_that_is_open_on_either_stream_counts_as_finished(
    own: Progress, main: Progress, attached: bool, published: Position, fed: Position | None
) -> None:
    reached = finished_everywhere(own, main, attached=attached, published=published, fed=fed)
    if reached is None:
        return
    for state in (own, main):
        if state.pending is not None and (state is main or state.last > ORIGIN):
            assert reached < state.pending
    if own.delivered is not None and own.last > ORIGIN and own.delivered < own.present:
        assert reached <= own.delivered
    if not attached:
        assert fed is not None
        assert reached <= fed


@given(st.builds(Position, st.integers(1, 9), st.integers(0, END)))
def test_before_and_after_leave_no_event_between(position: Position) -> None:
    assert progress.before(position) < position < progress.after(position)
    if position.seq < END:
        assert progress.before(progress.after(position)) == position
