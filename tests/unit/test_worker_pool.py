from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy.orm import Session

import workers
from outbox.settings import Settings
from workers.crash import Crashed, judge
from workers.errors import ChildDiedError
from workers.outcome import Dead
from workers.processes import Processes, manner


def here(n: int) -> None: ...


async def asynchronous(n: int) -> None: ...


def transactional(n: int, session: Session) -> None: ...


def started(n: int) -> None: ...


started.__module__ = "__main__"


def nested() -> Any:
    def inner(n: int) -> None: ...

    return inner


@pytest.mark.parametrize(
    ("function", "advice"),
    [
        (asynchronous, "make it a plain `def`"),
        (nested(), "define it with def at the top of a module"),
        (transactional, "open a session of your own"),
        (started, "move it to a module of its own"),
    ],
)
def test_what_cannot_run_in_a_child_process_is_refused_where_it_is_decorated_with_advice(
    function: Any, advice: str
) -> None:
    with pytest.raises(workers.HandlerError, match=advice):
        workers.App().handler("e", pool="process")(function)


class Client: ...


@contextlib.asynccontextmanager
async def lifespan(app: workers.App) -> AsyncIterator[Client]:
    yield Client()


def asks(n: int, client: Client) -> None: ...


def test_what_the_lifespan_gives_is_refused_where_it_is_asked_for_in_a_child() -> None:
    with pytest.raises(workers.HandlerError, match="'client' lives in the worker's process"):
        workers.App(lifespan=lifespan).handler("e", pool="process")(asks)


def test_a_pool_that_does_not_exist_is_refused() -> None:
    with pytest.raises(workers.HandlerError, match='must be "process" or left out'):
        workers.App().handler("e", pool="greenlet")(here)  # type: ignore[arg-type]


def double(n: int) -> None: ...


first = double


def double(n: int) -> None: ...  # type: ignore[no-redef]


def gone(n: int) -> None: ...


removed = gone
del gone


@pytest.mark.parametrize(("function", "reason"), [(first, "is something else"), (removed, "has no gone")])
def test_a_function_that_its_name_does_not_lead_to_is_refused_when_the_worker_starts(
    function: Any, reason: str
) -> None:
    app = workers.App()
    app.handler("e", pool="process")(function)
    (handler,) = app.handlers.values()
    with pytest.raises(workers.HandlerError, match=reason):
        Processes(handler, Settings())


@pytest.mark.parametrize(
    ("crashes", "attempt", "outcome"), [(0, 1, Crashed), (1, 2, Crashed), (2, 3, Dead), (0, 9, Dead)]
)
def test_the_third_crash_and_the_last_attempt_are_final(crashes: int, attempt: int, outcome: type) -> None:
    found = judge(
        ChildDiedError("killed by SIGSEGV"), attempt=attempt, crashes=crashes, max_attempts=9,
        backoff=workers.Backoff(), random=0.0,
    )  # fmt: skip
    assert type(found) is outcome
    assert "killed by SIGSEGV" in found.reason


@pytest.mark.parametrize(
    ("status", "words"), [(3, "exit status 3"), (-9, "killed by SIGKILL"), (-77, "killed by signal 77")]
)
def test_how_a_process_ended_is_said_in_words(status: int, words: str) -> None:
    assert manner(status) == words
