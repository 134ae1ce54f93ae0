from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Generic, NamedTuple, NewType, TypeVar

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from outbox.errors import ConfigurationError
from workers import App, Depends, HandlerError
from workers.dependencies import composed
from workers.resources import Resources, declared

T = TypeVar("T")


class Pool: ...


class SpecialPool(Pool): ...


class Cache(Generic[T]): ...


Mailer = NewType("Mailer", object)


class Tuple(NamedTuple):
    pool: Pool
    names: Cache[str]
    send: Mailer
    url: str
    clock: Callable[[], float]


@dataclass
class Two:
    reading: Pool
    writing: Pool


def giving(kind: Any, value: Any = None) -> Any:
    @asynccontextmanager
    async def lifespan(app: App):  # type: ignore[no-untyped-def]
        yield value

    lifespan.__wrapped__.__annotations__["return"] = AsyncIterator[kind]  # type: ignore[attr-defined]
    return lifespan


def test_a_class_gives_itself() -> None:
    assert declared(giving(Pool), {}).fields == {Pool: None}


def test_fields_give_their_types_but_never_those_that_payloads_have() -> None:
    assert declared(giving(Tuple), {}).fields == {Tuple: None, Pool: "pool", Cache[str]: "names", Mailer: "send"}


def test_a_lifespan_without_a_value_gives_nothing() -> None:
    @asynccontextmanager
    async def silent(app):  # type: ignore[no-untyped-def]
        yield

    assert declared(giving(None), {}).fields == declared(silent, {}).fields == declared(None, {}).fields == {}


def test_types_of_the_decorating_function_are_found() -> None:
    class Local: ...

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[Local]:
        yield Local()

    app = App(lifespan=lifespan)

    @app.handler("e")
    async def h(it: Local) -> None: ...

    assert app.handlers["h"].binding.resources == {"it": Local}


def test_a_type_that_nobody_gives_is_refused_with_handler_parameter_and_what_there_is() -> None:
    app = App(lifespan=giving(Pool))

    async def charge(bank: AsyncSession, its_cache: Cache[str]) -> None: ...

    with pytest.raises(
        HandlerError, match=r"handler 'charge': parameter 'its_cache' .*Cache.* the lifespan gives: Pool"
    ):
        app.handler("e")(charge)


def test_a_base_is_given_where_it_is_what_was_declared() -> None:
    special = SpecialPool()
    found = declared(giving(Pool), {}).taken(special, [("h", "pool", Pool)])
    assert found == {Pool: special}


def test_a_type_of_two_fields_is_refused_with_advice() -> None:
    app = App(lifespan=giving(Two))

    async def h(pool: Pool) -> None: ...

    with pytest.raises(HandlerError, match=r"parameter 'pool' asks for Pool, .* several: ask for Two"):
        app.handler("e")(h)


@pytest.mark.parametrize("kind", [str, dict[str, Any], list[Pool]])
def test_a_type_that_payloads_have_cannot_be_given(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="as payloads do"):
        App(lifespan=giving(kind))


def test_what_the_worker_gives_itself_cannot_be_given() -> None:
    with pytest.raises(ConfigurationError, match="AsyncSession, which handlers get from the worker"):
        App(lifespan=giving(AsyncSession))


def test_a_bare_generator_is_refused_with_advice() -> None:
    async def lifespan(app: App) -> AsyncIterator[Pool]:
        yield Pool()

    with pytest.raises(ConfigurationError, match="asynccontextmanager"):
        App(lifespan=lifespan)  # type: ignore[arg-type]


def test_a_value_that_was_not_declared_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"gave a Pool but does not declare it.*AsyncIterator\[Pool\]"):
        Resources().taken(Pool(), [])


def test_a_value_of_another_class_is_refused_with_who_asked() -> None:
    with pytest.raises(ConfigurationError, match=r"handler 'h' asks for Pool \(parameter 'p'\), but .* gave a Two"):
        declared(giving(Pool), {}).taken(Two(Pool(), Pool()), [("h", "p", Pool)])


def test_the_payload_reaches_no_parameter_that_is_given_a_resource() -> None:
    app = App(lifespan=giving(Pool))

    @app.handler("e")
    async def h(pool: Pool, **rest: Any) -> None: ...

    assert app.handlers["h"].binding.bind({"pool": "mine", "x": 1}) == {"x": 1}


def test_a_handler_that_asks_for_none_of_it_is_called_itself() -> None:
    app = App(lifespan=giving(Pool))

    @app.handler("e")
    async def plain(n: int) -> None: ...

    assert composed(app.handlers["plain"], {Pool: Pool()}) is plain


def _through(pool: Pool) -> Pool:
    return pool


def in_a_child(pool: Annotated[Pool, Depends(_through)]) -> None: ...


def test_a_child_process_cannot_have_a_resource_through_a_dependency_either() -> None:
    with pytest.raises(HandlerError, match="handler 'in_a_child': parameter 'pool' lives in the worker's process"):
        App(lifespan=giving(Pool)).handler("e", pool="process")(in_a_child)
