"""What a batch is made of, divided into and answered with; which handlers with `batch=` are refused, and how."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession

import workers
from workers import Event
from workers.batch import answers, halves
from workers.errors import BatchAnswerError
from workers.job import Job
from workers.outcome import DONE, Done


def jobs(count: int) -> list[Job]:
    lane: Any = None
    return [Job(lane, f"00000000-0000-7000-8000-{n:012}", 0, "e", "", "{}", "") for n in range(count)]


def runs(part: list[Job], bad: set[Job]) -> int:
    """How often a handler is called for a batch of which some always fail."""
    if len(part) == 1 or not bad.intersection(part):
        return 1
    return 1 + sum(runs(half, bad) for half in halves(part))


@given(st.integers(2, 1000), st.data())
def test_a_bad_event_costs_at_most_two_more_runs_for_each_halving(count: int, data: Any) -> None:
    all_of_them = jobs(count)
    bad = {all_of_them[data.draw(st.integers(0, count - 1))]}
    assert runs(all_of_them, bad) <= 1 + 2 * math.ceil(math.log2(count))
    assert runs(all_of_them, set(all_of_them)) == 2 * count - 1


@given(st.integers(2, 1000))
def test_halves_are_the_whole_and_differ_by_one_at_most(count: int) -> None:
    all_of_them = jobs(count)
    one, other = halves(all_of_them)
    assert one + other == all_of_them
    assert 0 <= len(one) - len(other) <= 1


def test_answers_come_in_order_or_by_id_and_none_means_done() -> None:
    first, second, third = three = jobs(3)
    error = ValueError("no")
    assert answers(three, None) == [(job, DONE) for job in three]
    expected = [(first, DONE), (second, error), (third, DONE)]
    assert answers(three, [None, error, Done()]) == expected
    assert answers(three, {first.event().id: None, second.event_id: error}) == expected


def test_an_answer_may_have_a_result_for_one_event_or_for_all() -> None:
    first, second = two = jobs(2)
    assert answers(two, [Done("one"), None]) == [(first, Done("one")), (second, DONE)]
    assert answers(two, {second.event_id: Done("other")}) == [(first, DONE), (second, Done("other"))]
    assert answers(two, Done("both")) == [(first, Done("both")), (second, Done("both"))]


def test_outcomes_are_answers_for_one_event_or_for_all() -> None:
    first, second = two = jobs(2)
    later, dead = answers(two, [workers.Retry(5, "busy"), workers.Dead("no")])
    assert (later[0], type(later[1]), later[1].delay) == (first, workers.RetryLater, 5)
    assert (dead[0], type(dead[1]), dead[1].reason) == (second, workers.Reject, "no")
    assert answers(two, Done()) == [(first, DONE), (second, DONE)]
    assert [(job, str(error)) for job, error in answers(two, workers.Dead("no"))] == [(first, "no"), (second, "no")]
    assert all(isinstance(error, workers.RetryLater) for _, error in answers(two, workers.RetryLater(1)))


@pytest.mark.parametrize("returned", [[], [None, None], "ab", b"ab", 3, {"x": None}, [1, None, None], object()])
def test_an_answer_that_is_none_is_refused_with_advice(returned: object) -> None:
    with pytest.raises(BatchAnswerError, match=r"a list in their order or a dict by event\.id"):
        answers(jobs(3), returned)


async def takes_events(events: list[Event]) -> None: ...
async def takes_no_event() -> None: ...
async def takes_one(event: Event) -> None: ...
async def takes_a_field(events: list[Event], order_id: int) -> None: ...
async def takes_more(events: list[Event], **more: Any) -> None: ...
async def takes_both(events: list[Event], event: Event) -> None: ...
async def takes_context(events: list[Event], context: workers.Context) -> None: ...
def takes_events_in_a_thread(events: list[Event]) -> None: ...
async def takes_session(session: AsyncSession, those: list[Event]) -> None: ...


@pytest.mark.parametrize(
    ("function", "options", "advice"),
    [
        (takes_events, {}, r"pass batch=…"),
        (takes_one, {"batch_wait": 1}, r"batch_wait needs batch"),
        (takes_events, {"batch": 0}, r"from 1 to 1000"),
        (takes_events, {"batch": 1001}, r"from 1 to 1000"),
        (takes_events, {"batch": 2, "batch_wait": -1}, r"from 0 to 60"),
        (takes_events, {"batch": 2, "batch_wait": math.nan}, r"from 0 to 60"),
        (takes_events, {"batch": 2, "batch_wait": 61}, r"from 0 to 60"),
        (takes_events_in_a_thread, {"batch": 2, "pool": "process"}, r"leave pool=… out"),
        (takes_no_event, {"batch": 2}, r"annotate a parameter list\[Event\]"),
        (takes_one, {"batch": 2}, r"annotate a parameter list\[Event\]"),
        (takes_a_field, {"batch": 2}, r"'order_id' .* event\.payload"),
        (takes_more, {"batch": 2}, r"event\.payload"),
        (takes_both, {"batch": 2}, r"no single one"),
        (takes_context, {"batch": 2}, r"no attempt in common"),
    ],
)
def test_what_makes_no_sense_is_refused_with_advice(function: Any, options: Any, advice: str) -> None:
    with pytest.raises(workers.HandlerError, match=advice):
        workers.App().handler("e", **options)(function)


@pytest.mark.parametrize("function", [takes_events, takes_session])
def test_a_batch_handler_takes_its_events_by_annotation(function: Any) -> None:
    app = workers.App()
    app.handler("e", batch=100, batch_wait=0.05)(function)
    (handler,) = app.handlers.values()
    assert (handler.batch, handler.batch_wait) == (100, 0.05)
