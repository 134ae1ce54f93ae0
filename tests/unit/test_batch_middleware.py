"""Middleware around runs of batches, without servers: what it is given, what it may return, what becomes of that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

import workers
from workers import Event
from workers.batch import Batch
from workers.batch_middleware import BatchMiddleware, around
from workers.errors import BatchAnswerError, HandlerError, Snooze, SupersededError
from workers.job import Job
from workers.outcome import DONE, Dead, Done, Outcome, Retry, Snoozed, judge

LOG = structlog.get_logger()


def batch_of(count: int, *, max_attempts: int = 10) -> Batch:
    lane: Any = SimpleNamespace(handler=SimpleNamespace(at_most_once=False))

    def decide(job: Job, error: BaseException) -> Outcome:
        backoff = workers.Backoff(initial=7, jitter=0)
        return judge(error, attempt=job.attempt, max_attempts=max_attempts, backoff=backoff, random=0.5)

    jobs = [Job(lane, f"00000000-0000-7000-8000-{n:012}", 0, "e", "", f'{{"n": {n}}}', "") for n in range(count)]
    return Batch(jobs, decide)


def through(
    middleware: BatchMiddleware | Sequence[BatchMiddleware], batch: Batch, run: Callable[[Job], Awaitable[bool]]
) -> bool:
    """Whether the outcomes are recorded already, as a lane is told."""
    all_of_it = [middleware] if callable(middleware) else middleware
    return asyncio.run(around(all_of_it, run, LOG)(batch))  # type: ignore[arg-type]


def plain(returned: object = None, runs: list[int] | None = None) -> Callable[[Job], Awaitable[bool]]:
    """A run of a plain handler that returns or raises this."""

    async def run(job: Job) -> bool:
        assert isinstance(job, Batch)
        if runs is not None:
            runs.append(len(job.jobs))
        if isinstance(returned, BaseException):
            raise returned
        job.answer(returned)
        return False

    return run


def transactional(returned: object = None) -> Callable[[Job], Awaitable[bool]]:
    """A run that commits what the handler returned."""

    async def run(job: Job) -> bool:
        assert isinstance(job, Batch)
        job.answer(returned)
        return True

    return run


async def passing(events: Sequence[Event], next: workers.BatchNext) -> workers.Outcomes:
    return await next(events)


def outcomes(batch: Batch) -> list[Outcome]:
    found = dict(batch.outcomes)
    return [found[job] for job in batch.jobs]


def test_it_gets_the_events_as_they_are_stored_and_an_outcome_for_each_by_id() -> None:
    seen: list[Any] = []

    async def outer(events: Sequence[Event], next: workers.BatchNext) -> workers.Outcomes:
        seen.append([event.payload["n"] for event in events])
        found = await next(events)
        seen.append([found[event.id] for event in events])
        return found

    async def inner(events: Sequence[Event], next: workers.BatchNext) -> workers.Outcomes:
        seen.append("inner")
        return await next(events)

    batch = batch_of(4)
    answer = [None, ValueError("no"), Snooze(5), workers.Dead("never")]
    assert through([outer, inner], batch, plain(answer)) is False
    expected = [Done(), Retry(7, "ValueError: no"), Snoozed(5, "snoozed"), Dead("rejected: never")]
    assert seen == [[0, 1, 2, 3], "inner", expected]
    assert outcomes(batch) == expected
    assert [type(batch.errors[job]) for job in batch.jobs[1:]] == [ValueError, Snooze, workers.Reject]


@pytest.mark.parametrize("returned", [OSError("no"), 7], ids=["raised", "no answer"])
@pytest.mark.parametrize("size", [1, 2])
def test_a_batch_that_fails_has_no_outcomes_and_what_is_let_through_is_what_the_handler_raised(
    size: int, returned: object
) -> None:
    seen: list[BaseException] = []

    async def watch(events: Sequence[Event], next: workers.BatchNext) -> workers.Outcomes:
        try:
            return await next(events)
        except Exception as error:
            seen.append(error)
            raise

    with pytest.raises((OSError, BatchAnswerError)) as raised:
        through(watch, batch_of(size), plain(returned))
    assert seen == [raised.value]


@pytest.mark.parametrize("size", [1, 3])
def test_it_may_decide_for_all_events_of_a_batch_that_failed(size: int) -> None:
    async def outage(events: Sequence[Event], next: workers.BatchNext) -> workers.Outcomes:
        try:
            return await next(events)
        except ConnectionError:
            return {event.id: workers.Retry(60, "away") for event in events}

    batch = batch_of(size)
    assert through(outage, batch, plain(ConnectionError())) is False
    assert outcomes(batch) == [Retry(60, "RetryLater: away")] * size


def test_it_may_change_what_is_not_committed_and_attempts_count() -> None:
    async def judge_again(events: Sequence[Event], next: workers.BatchNext) -> workers.Outcomes:
        first, second, third, fourth = events
        found = dict(await next(events))
        return found | {first.id: Done(), second.id: Retry(9), third.id: Snoozed(3, "not now"), fourth.id: Dead("no")}

    answer = [ValueError(), None, None, None]
    batch = batch_of(4)
    through(judge_again, batch, plain(answer))
    assert outcomes(batch)[0] is DONE
    assert outcomes(batch)[1:] == [
        Retry(9, "RetryLater: asked to be tried again later"), Snoozed(3, "not now"), Dead("rejected: no"),
    ]  # fmt: skip
    assert batch.jobs[0] not in batch.errors
    last = batch_of(4, max_attempts=1)
    through(judge_again, last, plain(answer))
    assert isinstance(outcomes(last)[1], Dead)


def test_it_may_leave_the_handler_out() -> None:
    async def skip(events: Sequence[Event], next: workers.BatchNext) -> workers.Outcomes:
        return {event.id: Done() for event in events}

    batch, runs = batch_of(2), []
    assert through(skip, batch, plain(runs=runs)) is False
    assert outcomes(batch) == [DONE, DONE]
    assert runs == []


@pytest.mark.parametrize("how", ["changed", "nothing", "raised"])
def test_what_is_committed_stays_and_an_attempt_to_change_it_is_told(how: str) -> None:
    async def doubt(events: Sequence[Event], next: workers.BatchNext) -> workers.Outcomes:
        found = await next(events)
        assert await next(events) == found
        if how == "raised":
            raise OSError("too late")
        return {} if how == "nothing" else dict(found) | {events[0].id: Retry(1, "too late")}

    batch = batch_of(2)
    with capture_logs() as logs:
        assert through(doubt, batch, transactional([None, Dead("no")])) is True
    assert outcomes(batch) == [Done(), Dead("rejected: no")]
    (told,) = logs
    assert told["event"] == "middleware.too_late"
    assert ("returned None" if how == "nothing" else "too late") in str(told)


def test_what_is_committed_and_passed_on_is_not_worth_a_word() -> None:
    with capture_logs() as logs:
        assert through(passing, batch_of(2), transactional([None, Dead("no")])) is True
    assert logs == []


def test_an_event_that_another_worker_has_is_in_no_outcome_and_asked_for_no_more() -> None:
    batch, seen = batch_of(3), []

    async def run(job: Job) -> bool:
        gone = batch.jobs.pop(0)
        batch.settled.append(gone)
        batch.jobs[0].closed = True
        batch.answer(None)
        return True

    async def watch(events: Sequence[Event], next: workers.BatchNext) -> workers.Outcomes:
        found = await next(events)
        seen.extend(event.payload["n"] for event in events if event.id in found)
        return {event.id: Done() for event in events}

    with capture_logs() as logs:
        assert through(watch, batch, run) is True
    assert seen == [1, 2]
    assert logs == []


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [
        (lambda events: None, "returned a NoneType: return what `await next"),
        (lambda events: [Done() for _ in events], "returned a list"),
        (lambda events: {events[0].id: Done()}, "returned None for event"),
        (lambda events: dict.fromkeys([event.id for event in events], "ok"), "returned 'ok' for event"),
        (lambda events: {"another": Done()}, "named 'another', which is no event of its batch"),
    ],
)
def test_what_is_no_outcome_for_each_fails_all_events_at_once_with_advice(wrong: Any, advice: str) -> None:
    async def careless(events: Sequence[Event], next: workers.BatchNext) -> workers.Outcomes:
        await next(events)
        return wrong(events)  # type: ignore[no-any-return]

    batch = batch_of(2, max_attempts=1)
    with pytest.raises(HandlerError, match=advice) as raised:
        through(careless, batch, plain([None, ValueError()]))
    assert batch.fail(raised.value) is True
    assert [type(outcome) for outcome in outcomes(batch)] == [Dead, Dead]


def test_other_events_cannot_be_passed_on() -> None:
    async def choosy(events: Sequence[Event], next: workers.BatchNext) -> workers.Outcomes:
        return await next(events[1:])

    with pytest.raises(HandlerError, match="must pass on"):
        through(choosy, batch_of(2), plain())


@pytest.mark.parametrize("cause", ["lost", "stop", "superseded"])
def test_a_run_that_was_lost_or_stopped_has_no_outcome_whatever_is_returned(cause: str) -> None:
    async def stubborn(events: Sequence[Event], next: workers.BatchNext) -> workers.Outcomes:
        try:
            return await next(events)
        except BaseException:
            return {event.id: Done() for event in events}

    batch = batch_of(1)

    async def run(job: Job) -> bool:
        if cause == "superseded":
            raise SupersededError
        batch.cause = cause
        raise asyncio.CancelledError

    with pytest.raises((SupersededError, asyncio.CancelledError)):
        through(stubborn, batch, run)
    assert batch.outcomes == []


def test_without_middleware_the_run_itself_is_what_is_called() -> None:
    run = plain()
    assert around([], run, LOG) is run


def test_what_cannot_be_a_batch_middleware_is_refused() -> None:
    def no_coroutine(events: Sequence[Event], next: workers.BatchNext) -> None: ...

    with pytest.raises(workers.HandlerError, match=r"`async def` and take \(events, next\)"):
        workers.App(batch_middleware=[no_coroutine])  # type: ignore[list-item]
