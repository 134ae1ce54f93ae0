"""The demo's verdict notices every kind of difference, however small it is among many events."""

from __future__ import annotations

import dataclasses
from uuid import UUID, uuid4

import pytest

from console.demo.reconciliation import Books, Effect, reconcile

HANDLERS = {"signed_up": ["greet", "award"], "order_placed": ["invoice"]}


@pytest.fixture
def books() -> Books:
    """A hundred events of two names, all well."""
    events = {uuid4(): "signed_up" if number % 2 else "order_placed" for number in range(100)}
    effects = [Effect(event, handler) for event, name in events.items() for handler in HANDLERS[name]]
    return Books(events, HANDLERS, effects, accepted=list(events), refused=[uuid4()], published=list(events))


def event_of(books: Books, name: str) -> UUID:
    return next(event for event, its_name in books.events.items() if its_name == name)


def test_books_that_agree_have_no_differences(books: Books) -> None:
    verdict = reconcile(books)
    assert verdict.agrees
    assert (verdict.committed, verdict.expected, verdict.effects) == (100, 150, 150)
    assert verdict.lost == verdict.duplicate == verdict.ghost == ()


@pytest.mark.parametrize("handler", ["greet", "award"])
def test_one_missing_effect_of_one_of_two_handlers_is_lost(books: Books, handler: str) -> None:
    missing = Effect(event_of(books, "signed_up"), handler)
    verdict = reconcile(dataclasses.replace(books, effects=[e for e in books.effects if e != missing]))
    assert not verdict.agrees
    assert verdict.lost == (missing,)
    assert verdict.duplicate == verdict.ghost == ()


def test_an_accepted_event_that_is_not_in_the_log_is_lost(books: Books) -> None:
    promised = uuid4()
    verdict = reconcile(dataclasses.replace(books, accepted=[*books.accepted, promised]))
    assert not verdict.agrees
    assert verdict.lost == (Effect(promised, ""),)


def test_events_that_nobody_is_subscribed_to_are_lost(books: Books) -> None:
    verdict = reconcile(
        dataclasses.replace(books, handlers={"signed_up": HANDLERS["signed_up"]}, effects=books.effects)
    )
    assert not verdict.agrees
    assert len(verdict.lost) == 50


def test_an_effect_that_stands_twice_is_a_duplicate(books: Books) -> None:
    doubled = books.effects[7]  # type: ignore[index]
    verdict = reconcile(dataclasses.replace(books, effects=[*books.effects, doubled]))
    assert not verdict.agrees
    assert verdict.duplicate == (doubled,)
    assert verdict.lost == verdict.ghost == ()


def test_every_surplus_effect_counts_as_a_duplicate(books: Books) -> None:
    doubled = books.effects[7]  # type: ignore[index]
    verdict = reconcile(dataclasses.replace(books, effects=[*books.effects, doubled, doubled]))
    assert verdict.duplicate == (doubled, doubled)


def test_a_duplicate_does_not_make_up_for_a_loss(books: Books) -> None:
    first, second, *rest = books.effects
    verdict = reconcile(dataclasses.replace(books, effects=[first, first, *rest]))
    assert verdict.effects == verdict.expected
    assert not verdict.agrees
    assert verdict.lost == (second,)
    assert verdict.duplicate == (first,)


def test_an_effect_of_an_event_that_was_never_committed_is_a_ghost(books: Books) -> None:
    ghost = Effect(uuid4(), "greet")
    verdict = reconcile(dataclasses.replace(books, effects=[*books.effects, ghost]))
    assert not verdict.agrees
    assert verdict.ghost == (ghost,)


def test_an_effect_of_a_handler_that_is_not_subscribed_to_the_event_is_a_ghost(books: Books) -> None:
    ghost = Effect(event_of(books, "order_placed"), "greet")
    verdict = reconcile(dataclasses.replace(books, effects=[*books.effects, ghost]))
    assert not verdict.agrees
    assert verdict.ghost == (ghost,)


def test_a_published_event_that_was_never_committed_is_a_ghost(books: Books) -> None:
    ghost = uuid4()
    verdict = reconcile(dataclasses.replace(books, published=[*books.published, ghost]))
    assert not verdict.agrees
    assert verdict.ghost == (Effect(ghost, ""),)


def test_a_refused_event_that_is_in_the_log_is_a_ghost(books: Books) -> None:
    kept = event_of(books, "order_placed")
    verdict = reconcile(dataclasses.replace(books, refused=[kept]))
    assert not verdict.agrees
    assert verdict.ghost == (Effect(kept, ""),)


def test_a_refused_request_whose_row_stayed_is_a_ghost(books: Books) -> None:
    (refused,) = books.refused
    verdict = reconcile(dataclasses.replace(books, survived=[refused]))
    assert not verdict.agrees
    assert verdict.ghost == (Effect(refused, ""),)


def test_a_run_in_which_nothing_happened_does_not_pass() -> None:
    assert not reconcile(Books({}, HANDLERS, [])).agrees
