from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

import workers
from outbox.errors import ConfigurationError
from workers.outcome import judge


def test_a_handler_is_named_after_its_function_and_the_function_stays_as_it_was() -> None:
    app = workers.App()

    def send_email(user_id: int) -> None: ...

    assert app.handler("signed_up")(send_email) is send_email
    assert app.handlers["send_email"].event_name == "signed_up"


def test_the_prefix_keeps_services_apart() -> None:
    app = workers.App(prefix="shop")

    @app.handler("signed_up", name="mail")
    def send_email(user_id: int) -> None: ...

    assert list(app.handlers) == ["shop.mail"]


def test_duplicate_names_are_refused() -> None:
    app = workers.App()

    @app.handler("a")
    def work() -> None: ...

    with pytest.raises(ConfigurationError, match="two handlers are named 'work'"):
        app.handler("b")(work)


@pytest.mark.parametrize(
    "options",
    [
        {"max_attempts": 0},
        {"timeout": 0},
        {"soft_timeout": 0},
        {"timeout": 5, "soft_timeout": 5},
        {"timeout": float("inf")},
        {"concurrency": 0},
        {"start": "then"},
        {"start": datetime(2026, 1, 1)},
    ],
)
def test_senseless_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(workers.HandlerError):
        workers.App().handler("a", **options)


async def asks_for_a_session(session: AsyncSession) -> None: ...
async def takes_a_batch(events: list[workers.Event]) -> None: ...
async def takes_nothing() -> None: ...


@pytest.mark.parametrize(
    ("function", "options", "advice"),
    [
        (asks_for_a_session, {}, "happens once anyway. Leave at_most_once out"),
        (takes_a_batch, {"batch": 10}, "leave batch=… out"),
        (takes_nothing, {"max_attempts": 1}, "is tried again; leave max_attempts=…, backoff"),
        (takes_nothing, {"backoff": 5}, "nothing is tried again; leave max_attempts=…, backoff"),
        (takes_nothing, {"retry_on": OSError}, "nothing is tried again; leave max_attempts=…, backoff"),
    ],
)
def test_at_most_once_refuses_what_contradicts_it_with_advice(function: Any, options: Any, advice: str) -> None:
    with pytest.raises(workers.HandlerError, match=advice):
        workers.App().handler("a", at_most_once=True, **options)(function)


def test_at_most_once_has_one_attempt_and_takes_the_apps_defaults_for_nothing() -> None:
    app = workers.App(backoff=5, retry_on=OSError)
    app.handler("a", at_most_once=True)(takes_nothing)
    handler = app.handlers["takes_nothing"]
    assert handler.max_attempts == 1
    for error in (OSError(), workers.RetryLater(1), workers.Snooze(1), ValueError()):
        outcome = judge(
            error, attempt=1, max_attempts=1, backoff=handler.backoff, random=0.0, verdicts=handler.verdicts
        )
        assert isinstance(outcome, workers.Dead)


def test_a_bad_event_name_and_a_nameless_function_are_refused() -> None:
    with pytest.raises(workers.HandlerError, match="invalid event name"):
        workers.App().handler("no spaces")
    with pytest.raises(workers.HandlerError, match="pass name="):
        workers.App().handler("a")(lambda: None)


def test_what_is_no_function_is_refused() -> None:
    class Callable_:
        def __call__(self) -> None: ...

    with pytest.raises(workers.HandlerError, match="must be a function"):
        workers.App().handler("a")(Callable_())


def test_types_of_the_decorating_function_are_found() -> None:
    import dataclasses

    @dataclasses.dataclass
    class Local:
        x: int

    app = workers.App()

    @app.handler("a")
    def work(local: Local) -> None: ...

    assert app.handlers["work"].binding.bind({"x": 1}) == {"local": Local(1)}
