"""The checker finds each thing that must not be, in a history made by hand, and nothing in one that is as it should."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.checker import check
from tests.chaos.facts import (
    Delivery,
    Effect,
    Facts,
    Handler,
    Row,
    Run,
    Said,
    Sighting,
    Transaction,
    runs,
    transactions,
)

GOOD = Facts(
    transactions=(
        Transaction("w-1", (Said("a", "order", "k", 1, "s1"), Said("u", "order", None, 0, "s2", undone=True)), "ok"),
        Transaction("w-2", (Said("b", "order", "k", 2, "s3"),), "unknown"),
        Transaction("w-3", (Said("c", "order", "k", 2, "s4"),), "unknown"),
        Transaction("w-4", (Said("d", "note", None, 0, "s5"),), "fail"),
        Transaction("w-5", (Said("e", "note", None, 0, "s6"),), "ok"),
    ),
    business=frozenset({"a", "b", "e"}),
    events=(
        Row("a", "order", "k", 10, "s1", at=5.0),
        Row("b", "order", "k", 12, "s3", at=6.0),
        Row("e", "note", None, 13, "s6", at=7.0),
        Row("f", "booked", "k", 14, "s7", at=7.5),
    ),
    handlers=(
        Handler("book", "order", registered=0.0, first=True),
        Handler("audit", "order", registered=5.5, first=False),
        Handler("notify", "order", registered=0.0, first=True),
        Handler("once", "note", registered=0.0, first=True),
        Handler("refuse", "note", registered=0.0, first=True),
    ),
    deliveries=(
        Delivery("a", "book", "done", 0, None),
        Delivery("b", "book", "done", 1, None),
        Delivery("b", "audit", "done", 0, None),
        Delivery("a", "notify", "done", 0, None, "s1"),
        Delivery("b", "notify", "dead", 3, "its worker died"),
        Delivery("e", "once", "dead", 0, "interrupted"),
        Delivery("e", "refuse", "dead", 0, "doomed"),
    ),
    effects=(Effect("a", "book", "s1", "f"), Effect("b", "book", "s3", None), Effect("b", "audit", "s3", None)),
    runs=(
        Run("a", "notify", "s1", ended=True),
        Run("a", "notify", "s1", ended=True),
        Run("e", "once", "s6", ended=False),
        Run("b", "notify", "s3", ended=False),
    ),
    sightings=(
        Sighting("order", 100, 10, "a"),
        Sighting("order", 101, 12, "b"),
        Sighting("note", 101, 13, "e"),
    ),
    doomed=frozenset({"e"}),
    transactional=frozenset({"book", "audit", "refuse"}),
    plain=frozenset({"notify"}),
    once=frozenset({"once"}),
    answering=frozenset({"notify"}),
)


def with_more(**more: tuple[Any, ...]) -> Facts:
    """What is good, and this besides."""
    return replace(GOOD, **{name: getattr(GOOD, name) + tuple(values) for name, values in more.items()})


def without(name: str, *numbers: int) -> Facts:
    """What is good, but for these."""
    return replace(GOOD, **{name: tuple(v for n, v in enumerate(getattr(GOOD, name)) if n not in numbers)})


def found(facts: Facts) -> set[tuple[str, str]]:
    return {(finding.kind, finding.event) for finding in check(facts)}


def test_nothing_is_found_where_all_is_as_it_should_be() -> None:
    assert check(GOOD) == []


@pytest.mark.parametrize(
    ("facts", "kind", "event"),
    [
        pytest.param(
            replace(GOOD, business=frozenset({"b", "e"})), "torn", "a", id="an event without its business row"
        ),
        pytest.param(
            replace(GOOD, business=GOOD.business | {"c"}), "torn", "c", id="a business row without its event, not known"
        ),
        pytest.param(
            replace(without("events", 0), business=frozenset({"b", "e"})), "lost", "a", id="committed and not there"
        ),
        pytest.param(
            replace(with_more(events=(Row("d", "note", None, 9, "s5", 1.0),)), business=GOOD.business | {"d"}),
            "ghost",
            "d",
            id="rolled back and there",
        ),
        pytest.param(
            with_more(events=(Row("u", "order", None, 9, "s2", 1.0),)), "ghost", "u", id="rolled back to a savepoint"
        ),
        pytest.param(with_more(events=(Row("x", "lone", None, 9, "", 1.0),)), "ghost", "x", id="added by nobody"),
        pytest.param(
            with_more(sightings=(Sighting("note", 99, 9, "d"),)), "ghost", "d", id="published and rolled back"
        ),
        pytest.param(with_more(effects=(Effect("c", "book", "", None),)), "ghost", "c", id="an effect of nothing"),
        pytest.param(
            replace(GOOD, effects=(*GOOD.effects[1:], Effect("a", "book", "s1", "y"))),
            "torn",
            "a",
            id="an effect without the follow-up event of its transaction",
        ),
        pytest.param(without("deliveries", 0), "lost", "a", id="no outcome"),
        pytest.param(without("effects", 1), "lost", "b", id="done without an effect"),
        pytest.param(without("runs", 0, 1), "lost", "a", id="a plain handler is done and never ran to its end"),
        pytest.param(
            replace(GOOD, deliveries=(*GOOD.deliveries[:4], replace(GOOD.deliveries[4], letter=None))),
            "lost",
            "b",
            id="dead without a letter",
        ),
        pytest.param(
            replace(GOOD, deliveries=(*GOOD.deliveries[:4], replace(GOOD.deliveries[4], crashes=2))),
            "buried",
            "b",
            id="dead before its worker died three times",
        ),
        pytest.param(without("runs", 3), "buried", "b", id="dead without a run"),
        pytest.param(
            replace(GOOD, deliveries=(replace(GOOD.deliveries[0], state="retrying"), *GOOD.deliveries[1:])),
            "stuck",
            "a",
            id="tried for ever",
        ),
        pytest.param(
            replace(
                GOOD, deliveries=(*GOOD.deliveries[:3], replace(GOOD.deliveries[3], result=None), *GOOD.deliveries[4:])
            ),
            "changed",
            "a",
            id="a result that was not kept",
        ),
        pytest.param(with_more(effects=(GOOD.effects[1],)), "duplicate", "b", id="an effect twice"),
        pytest.param(
            with_more(effects=(Effect("e", "refuse", "s6", None),)), "duplicate", "e", id="an effect of what is dead"
        ),
        pytest.param(with_more(runs=(GOOD.runs[2],)), "duplicate", "e", id="a second run of what runs at most once"),
        pytest.param(
            with_more(sightings=(Sighting("order", 103, 10, "a"),)), "duplicate", "a", id="an entry under two ids"
        ),
        pytest.param(
            with_more(sightings=(Sighting("order:book", 100, 10, "a"), Sighting("order:book", 103, 10, "a"))),
            "duplicate",
            "a",
            id="an entry under two ids on a catch-up stream",
        ),
        pytest.param(
            with_more(sightings=(Sighting("order:book", 102, 10, "a"), Sighting("order:book", 101, 12, "b"))),
            "order",
            "a",
            id="a key's events the wrong way round on a catch-up stream",
        ),
        pytest.param(
            replace(GOOD, sightings=(Sighting("note", 101, 1, "e"),)), "order", "e", id="an id that is not its place"
        ),
        pytest.param(
            replace(GOOD, sightings=(Sighting("order", 102, 10, "a"), Sighting("order", 101, 12, "b"))),
            "order",
            "a",
            id="a key's events the wrong way round",
        ),
        pytest.param(
            replace(GOOD, effects=(replace(GOOD.effects[0], sha="?"), *GOOD.effects[1:])),
            "changed",
            "a",
            id="a handler that saw another payload",
        ),
        pytest.param(
            replace(GOOD, events=(replace(GOOD.events[0], sha="?"), *GOOD.events[1:])),
            "changed",
            "a",
            id="a payload that was stored as another",
        ),
        pytest.param(replace(GOOD, unsettled=("2 pending",)), "stuck", "", id="what did not come to rest"),
        pytest.param(replace(GOOD, fallen=("relay-1",)), "fell", "", id="a program that gave up"),
    ],
)
def test_each_thing_that_must_not_be_is_found(facts: Facts, kind: str, event: str) -> None:
    assert (kind, event) in found(facts)


def test_an_entry_may_have_another_id_on_a_catch_up_stream_whose_feed_read_fewer_ticks() -> None:
    assert (
        check(with_more(sightings=(Sighting("order:book", 101, 10, "a"), Sighting("order:book", 101, 12, "b")))) == []
    )


def test_a_part_of_a_transaction_is_found() -> None:
    both = (Said("b", "order", "k", 2, "s3"), Said("z", "order", "k", 3, "s8"))
    facts = replace(GOOD, transactions=(*GOOD.transactions, Transaction("w-6", both, "unknown")))
    assert ("torn", "b") in found(facts)


def test_a_commit_that_did_not_wait_for_the_disk_may_be_lost_by_a_crash_and_by_nothing_else() -> None:
    unflushed = Transaction("w-9", (Said("z", "note", None, 0, "s9"),), "ok", flushed=False)
    facts = with_more(transactions=(unflushed,))
    assert ("lost", "z") in found(facts)
    assert check(replace(facts, crashed=True)) == []
    assert ("lost", "z") in found(
        replace(GOOD, crashed=True, transactions=(*GOOD.transactions, replace(unflushed, flushed=True)))
    )


def test_a_later_handler_owes_only_what_was_added_after_it_registered() -> None:
    assert ("lost", "b") in found(without("deliveries", 2))
    shifted = replace(GOOD.transactions[1], events=(replace(GOOD.transactions[1].events[0], shifted=True),))
    facts = without("deliveries", 2)
    facts = replace(facts, transactions=(*facts.transactions[:1], shifted, *facts.transactions[2:]))
    assert ("lost", "b") not in found(replace(facts, effects=facts.effects[:2]))


def test_histories_become_transactions_and_runs() -> None:
    said = {"id": "a", "name": "order", "key": None, "n": 0, "sha": "s"}
    entries: list[dict[str, Any]] = [
        {"what": "intent", "tx": str(n), "events": [said], "kept": kept, "flushed": True}
        for n, kept in enumerate((True, True, True, True, False))
    ]
    entries += [{"what": what, "tx": str(n)} for n, what in enumerate(("ok", "fail", "unknown"))]
    assert [tx.outcome for tx in transactions(entries)] == ["ok", "fail", "unknown", "unknown", "fail"]
    run = {"pid": 1, "handler": "once", "event": "a"}
    entries = [{"what": "run", "sha": "s", **run}, {"what": "ran", **run}, {"what": "run", "sha": "s", **run, "pid": 2}]
    assert [each.ended for each in runs(entries)] == [True, False]
