import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Annotated, Any

import fastapi
import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from workers import App, Context, Depends, Event, HandlerError, PayloadMismatchError
from workers.dependencies import composed
from workers.handler import Handler

happened: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_happened() -> None:
    happened.clear()


class Pool: ...


def handler_of(function: Any, app: App | None = None) -> Handler:
    app = app or App()
    app.handler("e", name="h")(function)
    return app.handlers["h"]


def call(function: Any, payload: Any = None, resources: Any = None, app: App | None = None, **values: Any) -> Any:
    """Call a handler as the worker does, with a value for each kind that it injects."""
    handler = handler_of(function, app)
    arguments = handler.binding.bind({} if payload is None else payload)
    for kind, parameter in handler.binding.injected.items():
        arguments[parameter] = payload if kind == "payload" else values[kind]
    result = composed(handler, resources or {})(**arguments)
    return asyncio.run(_awaited(result)) if handler.asynchronous else result


async def _awaited(result: Any) -> Any:
    return await result


def one() -> int:
    return 1


async def two() -> int:
    return 2


def test_a_dependencys_result_is_given_to_async_and_sync_handlers() -> None:
    async def on_the_loop(a: Annotated[int, Depends(one)], b: Annotated[int, Depends(two)]) -> int:
        return a + b

    def in_a_thread(a: Annotated[int, Depends(one)], b: int = Depends(one)) -> int:
        return a + b

    assert call(on_the_loop) == 3
    assert call(in_a_thread) == 2


def test_dependencies_have_dependencies() -> None:
    def price(base: Annotated[int, Depends(one)]) -> int:
        return base * 10

    async def total(price: Annotated[int, Depends(price)], more: Annotated[int, Depends(two)]) -> int:
        return price + more

    async def handler(total: Annotated[int, Depends(total)]) -> int:
        return total

    assert call(handler) == 12


def test_parameters_of_one_name_are_not_taken_for_each_other() -> None:
    def inner(value: Annotated[int, Depends(one)]) -> int:
        return value

    async def handler(value: Annotated[int, Depends(two)], other: Annotated[int, Depends(inner)]) -> tuple[int, int]:
        return value, other

    assert call(handler) == (2, 1)


def test_a_payload_never_replaces_a_dependency() -> None:
    def secret() -> str:
        return "ours"

    async def handler(secret: Annotated[str, Depends(secret)], **rest: Any) -> tuple[str, Any]:
        return secret, rest

    assert call(handler, {"secret": "theirs", "run": 1, "my-key": 2}) == ("ours", {"run": 1, "my-key": 2})


def test_a_dependency_is_called_once_in_a_run_unless_it_says_otherwise() -> None:
    def cached() -> object:
        return object()

    def middle(it: Annotated[object, Depends(cached)]) -> object:
        return it

    async def handler(
        direct: Annotated[object, Depends(cached)],
        through: Annotated[object, Depends(middle)],
        fresh: Annotated[object, Depends(cached, use_cache=False)],
        fresh_too: Annotated[object, Depends(cached, use_cache=False)],
    ) -> list[object]:
        return [direct, through, fresh, fresh_too]

    direct, through, fresh, fresh_too = call(handler)
    assert direct is through
    assert len({id(direct), id(fresh), id(fresh_too)}) == 3


def test_each_run_has_dependencies_of_its_own() -> None:
    made = composed(handler_of(_fresh), {})
    assert asyncio.run(_twice(made)) == 2


def _made() -> list[int]:
    return []


async def _fresh(it: Annotated[list[int], Depends(_made)]) -> list[int]:
    return it


async def _twice(made: Any) -> int:
    first, second = await made(), await made()
    return len({id(first), id(second)})


def test_dependencies_ask_for_what_handlers_may_ask_for() -> None:
    async def everything(
        user_id: int, e: Event, c: Context, s: AsyncSession, p: Pool, note: str = "none"
    ) -> tuple[object, ...]:
        return user_id, e, c, s, p, note

    async def handler(it: Annotated[tuple[object, ...], Depends(everything)]) -> tuple[object, ...]:
        return it

    @contextlib.asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[Pool]:
        yield pool

    pool, app = Pool(), App(lifespan=lifespan)
    found = call(handler, {"user_id": "7"}, {Pool: pool}, app, event="E", context="C", async_session="S")
    assert found == (7, "E", "C", "S", pool, "none")


def test_a_handler_is_transactional_when_a_dependency_asks_for_the_session() -> None:
    def repository(session: AsyncSession) -> AsyncSession:
        return session

    async def handler(repository: Annotated[AsyncSession, Depends(repository)]) -> AsyncSession:
        return repository

    assert handler_of(handler).transactional
    assert call(handler, async_session="S") == "S"


def test_classes_and_callable_objects_are_dependencies_too() -> None:
    class Greeting:
        def __init__(self, user_id: int) -> None:
            self.text = f"hello {user_id}"

    class Repeater:
        async def __call__(self, greeting: Annotated[Greeting, Depends(Greeting)]) -> str:
            return greeting.text * 2

    async def handler(text: Annotated[str, Depends(Repeater())]) -> str:
        return text

    assert call(handler, {"user_id": 7}) == "hello 7hello 7"


def test_a_payload_that_does_not_fit_a_dependency_names_it_and_the_field_and_shows_no_value() -> None:
    def card(number: int) -> int:
        return number

    async def handler(card: Annotated[int, Depends(card)]) -> None: ...

    with pytest.raises(PayloadMismatchError, match="dependency 'card' of handler 'h': field 'number' is missing"):
        call(handler, {})
    with pytest.raises(PayloadMismatchError, match="field 'number'") as caught:
        call(handler, {"number": "4111-secret"})
    assert "4111" not in str(caught.value)
    assert caught.value.field == "number"


async def opened() -> AsyncIterator[str]:
    happened.append("opened")
    try:
        yield "it"
    except BaseException as error:
        happened.append(type(error).__name__)
        raise
    finally:
        happened.append("closed")


def opened_plainly() -> Iterator[str]:
    happened.append("opened")
    try:
        yield "it"
    except BaseException as error:
        happened.append(type(error).__name__)
        raise
    finally:
        happened.append("closed")


def running(function: Any) -> Any:
    """A handler of either kind that notes that it runs, and fails if it is told to."""

    async def on_the_loop(fail: bool, it: Annotated[str, Depends(function)]) -> None:
        happened.append(f"ran with {it}")
        if fail:
            raise ValueError

    return on_the_loop


def running_in_a_thread(function: Any) -> Any:
    def in_a_thread(fail: bool, it: Annotated[str, Depends(function)]) -> None:
        happened.append(f"ran with {it}")
        if fail:
            raise ValueError

    return in_a_thread


GENERATORS = [running(opened), running(opened_plainly), running_in_a_thread(opened_plainly)]


@pytest.mark.parametrize("handler", GENERATORS, ids=["async", "sync on the loop", "sync in a thread"])
def test_a_generator_cleans_up_after_the_run(handler: Any) -> None:
    call(handler, {"fail": False})
    assert happened == ["opened", "ran with it", "closed"]


@pytest.mark.parametrize("handler", GENERATORS, ids=["async", "sync on the loop", "sync in a thread"])
def test_a_generator_sees_the_failure_and_cleans_up(handler: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        call(handler, {"fail": True})
    assert happened == ["opened", "ran with it", "ValueError", "closed"]


@pytest.mark.parametrize("generator", [opened, opened_plainly])
def test_a_generator_cleans_up_after_a_cancellation(generator: Any) -> None:
    async def handler(it: Annotated[str, Depends(generator)]) -> None:
        happened.append("runs")
        await asyncio.Event().wait()

    made = composed(handler_of(handler), {})

    async def cancelled() -> None:
        task = asyncio.ensure_future(made())
        while "runs" not in happened:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert happened == ["opened", "runs", "CancelledError", "closed"]


async def _silent() -> AsyncIterator[None]:
    with contextlib.suppress(Exception):
        yield


def _silent_plainly() -> Iterator[None]:
    with contextlib.suppress(Exception):
        yield


@pytest.mark.parametrize(
    "handler",
    [running(_silent), running(_silent_plainly), running_in_a_thread(_silent_plainly)],
    ids=["async", "sync on the loop", "sync in a thread"],
)
def test_a_dependency_that_swallows_a_failure_makes_no_success_of_it(handler: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        call(handler, {"fail": True})


def test_what_fails_while_cleaning_up_fails_the_run() -> None:
    async def careless() -> AsyncIterator[None]:
        yield
        raise OSError("cannot close")

    with pytest.raises(OSError, match="cannot close"):
        call(running(careless), {"fail": False})


def test_generators_are_left_in_reverse_order() -> None:
    def first() -> Iterator[int]:
        yield 1
        happened.append("first")

    async def second(it: Annotated[int, Depends(first)]) -> AsyncIterator[int]:
        yield it + 1
        happened.append("second")

    async def handler(it: Annotated[int, Depends(second)]) -> int:
        return it

    assert call(handler) == 2
    assert happened == ["second", "first"]


def test_a_plain_dependency_of_an_async_handler_blocks_no_event_loop() -> None:
    def where() -> threading.Thread:
        return threading.current_thread()

    async def handler(it: Annotated[threading.Thread, Depends(where)]) -> threading.Thread:
        return it

    assert call(handler) is not threading.main_thread()


def test_context_variables_reach_dependencies() -> None:
    tenant: ContextVar[str] = ContextVar("tenant")

    def plain() -> str:
        return tenant.get()

    async def handler(it: Annotated[str, Depends(plain)]) -> str:
        return it

    tenant.set("acme")
    assert call(handler) == "acme"


def test_a_handler_without_dependencies_is_called_itself() -> None:
    async def handler(n: int, event: Event) -> None: ...

    assert composed(handler_of(handler), {}) is handler


def _asks_for_session(session: Session) -> None: ...


async def _is_async() -> None: ...


def _circle(again: Annotated[None, Depends(lambda: None)]) -> None: ...


_circle.__annotations__["again"] = Annotated[None, Depends(_circle)]


async def _h1(it: Annotated[None, Depends(_asks_for_session)]) -> None: ...
def _h2(it: Annotated[None, Depends(_is_async)]) -> None: ...
async def _h3(it: Annotated[None, Depends(_circle)]) -> None: ...
async def _h4(it: Annotated[None, fastapi.Depends(one)]) -> None: ...
async def _h5(it: Annotated[None, Depends(7)]) -> None: ...  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("handler", "sentence"),
    [
        (_h1, "dependency '_asks_for_session' of handler 'h' asks for a Session, which would block"),
        (_h2, "handler 'h' runs in a thread, as a plain `def`: its dependency '_is_async' cannot be asynchronous"),
        (_h3, "dependency '_circle' depends on itself"),
        (_h4, "parameter 'it' has FastAPI's Depends.*use workers.Depends"),
        (_h5, "Depends takes something callable, not 7"),
    ],
)
def test_what_cannot_work_is_refused_where_it_is_decorated(handler: Any, sentence: str) -> None:
    with pytest.raises(HandlerError, match=sentence):
        handler_of(handler)


def test_a_batch_has_dependencies_but_no_one_payload_for_them() -> None:
    def count(events: list[Event]) -> int:
        return len(events)

    def field(n: int) -> int:
        return n

    async def handler(events: list[Event], count: Annotated[int, Depends(count)]) -> int:
        return count

    async def wrong(events: list[Event], field: Annotated[int, Depends(field)]) -> None: ...

    app = App()
    app.handler("e", name="h", batch=10)(handler)
    assert asyncio.run(composed(app.handlers["h"])(events=[1, 2, 3])) == 3
    with pytest.raises(HandlerError, match=r"handler 'wrong': with batch=… there is no one payload"):
        app.handler("e", batch=10)(wrong)
