from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import pydantic
import pytest
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from outbox.event import Event
from workers.binding import Binding, compile
from workers.context import Context
from workers.errors import HandlerError, PayloadMismatchError

if TYPE_CHECKING:
    from fractions import Fraction


def bind(function: Any, payload: Any) -> dict[str, Any]:
    return compile(function, "h").bind(payload)


def test_values_are_validated_against_their_annotations() -> None:
    async def handler(user_id: int, at: datetime, token: UUID, price: Decimal, tags: list[str]) -> None: ...

    bound = bind(
        handler,
        {
            "user_id": 7,
            "at": "2026-01-02T03:04:05Z",
            "token": "00000000-0000-7000-8000-000000000001",
            "price": "1.10",
            "tags": ["a"],
        },
    )
    assert bound == {
        "user_id": 7,
        "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "token": UUID("00000000-0000-7000-8000-000000000001"),
        "price": Decimal("1.10"),
        "tags": ["a"],
    }


def test_a_value_without_an_annotation_is_passed_untouched() -> None:
    def handler(a, b: Any): ...  # type: ignore[no-untyped-def]

    value = {"deep": [1e16, 12345678901234567890123, None]}
    bound = bind(handler, {"a": value, "b": value})
    assert bound["a"] is value
    assert bound["b"] is value


def test_a_missing_key_is_an_error_that_names_the_field() -> None:
    def handler(user_id: int) -> None: ...

    with pytest.raises(PayloadMismatchError, match="field 'user_id' is missing") as caught:
        bind(handler, {})
    assert caught.value.field == "user_id"


def test_a_value_that_does_not_fit_names_the_field_and_shows_no_input() -> None:
    def handler(card: Card, amount: int) -> None: ...

    with pytest.raises(PayloadMismatchError) as caught:
        bind(handler, {"card": {"number": "4111-secret"}, "amount": 1})
    assert caught.value.field == "card.number"
    assert "4111" not in str(caught.value)


def test_a_default_stands_in_for_a_missing_key() -> None:
    def handler(user_id: int, template: str = "welcome") -> None: ...

    assert bind(handler, {"user_id": 1}) == {"user_id": 1}


def test_a_key_that_no_parameter_knows_is_ignored() -> None:
    def handler(user_id: int) -> None: ...

    assert bind(handler, {"user_id": 1, "added_by_a_newer_writer": True}) == {"user_id": 1}


def test_kwargs_take_the_rest_but_never_an_injected_parameter() -> None:
    def handler(user_id: int, session: Session, **rest: Any) -> None: ...

    assert bind(handler, {"user_id": 1, "x": 2, "session": "?"}) == {"user_id": 1, "x": 2}


class Card(pydantic.BaseModel):
    number: int


class Order(pydantic.BaseModel):
    order_id: int
    total: Decimal = Decimal(0)


@dataclasses.dataclass
class Signup:
    email: str


def test_a_single_model_takes_the_whole_payload() -> None:
    def handler(order: Order, event: Event) -> None: ...

    assert bind(handler, {"order_id": 3}) == {"order": Order(order_id=3)}


def test_a_single_dataclass_takes_the_whole_payload() -> None:
    def handler(signup: Signup) -> None: ...

    assert bind(handler, {"email": "a@b"}) == {"signup": Signup("a@b")}


def test_a_key_of_the_models_name_wins_over_the_whole_payload() -> None:
    def handler(order: Order) -> None: ...

    assert bind(handler, {"order": {"order_id": 3}}) == {"order": Order(order_id=3)}


def test_an_error_in_the_whole_payload_names_the_models_field() -> None:
    def handler(order: Order) -> None: ...

    with pytest.raises(PayloadMismatchError) as caught:
        bind(handler, {"total": 1})
    assert caught.value.field == "order_id"


def test_a_payload_that_is_no_object_is_refused() -> None:
    def handler(user_id: int) -> None: ...

    with pytest.raises(PayloadMismatchError, match="not an object"):
        bind(handler, [1])


def test_injection_goes_by_annotation_and_never_by_name() -> None:
    async def handler(event: str, e: Event, db: Annotated[AsyncSession, "note"], run: Context) -> None: ...

    binding = compile(handler, "h")
    assert binding.injected == {"event": "e", "async_session": "db", "context": "run"}
    assert binding.bind({"event": "party"}) == {"event": "party"}
    assert binding.transactional


def test_string_annotations_of_local_types_are_resolved_from_the_namespace() -> None:
    class Local(pydantic.BaseModel):
        x: int

    def handler(a: Local, b: int) -> None: ...

    assert compile(handler, "h", {"Local": Local}).bind({"a": {"x": 1}, "b": 2}) == {"a": Local(x=1), "b": 2}


def refused(function: Any) -> str:
    with pytest.raises(HandlerError) as caught:
        compile(function, "h")
    return str(caught.value)


def test_a_type_that_exists_only_for_type_checkers_is_refused() -> None:
    def handler(share: Fraction) -> None: ...

    assert "TYPE_CHECKING" in refused(handler)


def test_an_unknown_injectable_is_refused() -> None:
    def handler(engine: Engine) -> None: ...

    assert "neither something a payload can hold nor injectable" in refused(handler)


def test_a_session_that_does_not_match_the_function_is_refused() -> None:
    async def asynchronous(session: Session) -> None: ...

    def synchronous(session: AsyncSession) -> None: ...

    assert "ask for AsyncSession" in refused(asynchronous)
    assert "ask for Session" in refused(synchronous)


def test_two_sessions_are_refused() -> None:
    def handler(a: Session, b: Session) -> None: ...

    assert "asks twice" in refused(handler)


def test_positional_only_and_star_args_are_refused() -> None:
    def positional(a: int, /) -> None: ...

    def star(*args: int) -> None: ...

    assert "by name" in refused(positional)
    assert "by name" in refused(star)


def test_a_binding_is_a_value() -> None:
    def handler(a: int) -> None: ...

    assert isinstance(compile(handler, "h"), Binding)
