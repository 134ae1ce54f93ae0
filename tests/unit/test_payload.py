"""What may be stored, and what becomes of it."""

from __future__ import annotations

import json
import math
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from types import MappingProxyType, SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, RootModel, SecretStr, TypeAdapter
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

from outbox import payload
from outbox.errors import PayloadError
from workers.binding import compile as bind


class Colour(Enum):
    RED = "red"


class Size(StrEnum):
    LARGE = "large"


class Level(IntEnum):
    HIGH = 3


@dataclass
class Line:
    price: Decimal
    tags: tuple[str, ...] = ()


class Order(BaseModel):
    id: UUID
    at: datetime
    lines: list[Line] = []


class Base(MappedAsDataclass, DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "payload_users"
    id: Mapped[int] = mapped_column(primary_key=True)


Point = namedtuple("Point", "x y")
ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
UUID_4 = "0bd2d3a8-3a6b-4f0a-9f0f-6a4a1d5c2b7e"


def stored(value: object) -> Any:
    return json.loads(payload.encode({"value": value}))["value"]


def refused(value: object) -> PayloadError:
    with pytest.raises(PayloadError) as caught:
        payload.encode({"value": value})
    return caught.value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1e16, "1e+16"),
        (-0.0, "-0.0"),
        (2**70, "1180591620717411303424"),
        ("ü€😀\x01\u2028", '"ü€😀\\u0001\u2028"'),
        ("\\u0000", '"\\\\u0000"'),
        ((1, [2]), "[1,[2]]"),
        (Point(1, 2), "[1,2]"),
        ({"b": 1, "a": 2}, '{"b":1,"a":2}'),
        (OrderedDict(z=1), '{"z":1}'),
        (MappingProxyType({"a": 1}), '{"a":1}'),
        (ID, '"01890a5d-ac96-774b-bcce-b302099a8057"'),
        (Decimal("1.10"), '"1.10"'),
        (date(2026, 1, 31), '"2026-01-31"'),
        (time(8, 30), '"08:30:00"'),
        (datetime(2026, 1, 31, 8, 0, 0, 5, UTC), '"2026-01-31T08:00:00.000005+00:00"'),
        (datetime(2026, 1, 31, 8, tzinfo=timezone(timedelta(hours=2))), '"2026-01-31T08:00:00+02:00"'),
        (datetime(2026, 1, 31, 8), '"2026-01-31T08:00:00"'),
        (timedelta(days=1, seconds=2, milliseconds=500), '"P1DT2.5S"'),
        (timedelta(0), '"PT0S"'),
        (Colour.RED, '"red"'),
        (Size.LARGE, '"large"'),
        (Level.HIGH, "3"),
        ({Size.LARGE: 1, Colour.RED: 2}, '{"large":1,"red":2}'),
        (Line(Decimal("9.99"), ("a",)), '{"price":"9.99","tags":["a"]}'),
        (RootModel[list[int]]([1, 2]), "[1,2]"),
    ],
)
def test_each_type_is_written_by_its_rule(value: object, text: str) -> None:
    assert payload.encode({"value": value}) == f'{{"value":{text}}}'


def test_a_model_or_dataclass_is_a_payload() -> None:
    order = Order(id=ID, at=datetime(2026, 1, 31, 8, tzinfo=UTC), lines=[Line(Decimal("1.5"))])
    assert Order.model_validate_json(payload.encode(order)) == order
    assert payload.encode(Line(Decimal(1))) == '{"price":"1","tags":[]}'


@given(st.timedeltas())
def test_pydantic_reads_a_duration_back_exactly(value: timedelta) -> None:
    if abs(value) < timedelta(days=999_999_999):
        assert TypeAdapter(timedelta).validate_python(stored(value)) == value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (User(id=1), "ORM instance: pass its id"),
        (math.nan, "nan is not JSON"),
        (-math.inf, "-inf is not JSON"),
        (Decimal("NaN"), "not a number"),
        ("a\0b", "NUL"),
        ("a\ud800", "lone surrogate"),
        ({"a\0": 1}, "NUL"),
        ({"\udfff": 1}, "lone surrogate"),
        ({1: 1}, "key of type int"),
        ({None: 1}, "key of type NoneType"),
        ({Level.HIGH: 1}, "key of type int"),
        ({1}, "sorted"),
        (b"a", "base64"),
        (object(), "object is not JSON"),
        (SimpleNamespace(), "SimpleNamespace is not JSON"),
        (Line, "class Line is not a value"),
        (iter([]), "list_iterator is not JSON"),
        (1j, "complex is not JSON"),
        ([10**5000], "too many digits"),
        ({Colour.RED: 1, "red": 2}, "same text"),
        ({1, 2}.__iter__(), "set_iterator is not JSON"),
        ((number for number in (1, 2)), "generator is not JSON"),
        ({"a": 1}.items(), "dict_items is not JSON"),
        (SecretStr("x"), "SecretStr is not JSON"),
        (UTC, "timezone is not JSON"),
    ],
)
def test_what_json_or_postgresql_cannot_hold_is_refused_with_advice(value: object, words: str) -> None:
    error = refused(value)
    assert words in str(error)
    assert error.__cause__ is None or "digits" in words


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (math.nan, "$.value"),
        ({"items": [{"price": 1}, {"price": math.nan}]}, "$.value.items[1].price"),
        ({"odd key": [b""]}, "$.value['odd key'][0]"),
        ({"items": ["fine", "\0"]}, "$.value.items[1]"),
        (Line(Decimal("NaN")), "$.value.price"),
    ],
)
def test_the_error_says_where(value: object, path: str) -> None:
    error = refused(value)
    assert error.path == path
    assert path in str(error)


def test_the_error_does_not_show_the_value() -> None:
    assert "secret" not in str(refused("secret\0"))
    assert "secret" not in str(refused(["secret", {"secret"}]))


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_nesting_is_limited_and_never_exhausts_the_stack() -> None:
    # The payload is the first level, "value" begins the second.
    assert stored(nested(payload.MAX_DEPTH - 1)) == nested(payload.MAX_DEPTH - 1)
    assert "nested deeper" in str(refused(nested(payload.MAX_DEPTH)))
    assert "nested deeper" in str(refused(nested(20_000)))
    cycle: list[Any] = []
    cycle.append(cycle)
    assert "contains itself" in str(refused(cycle))


def test_size_is_counted_in_bytes_of_utf_8() -> None:
    room = payload.MAX_BYTES - len('{"value":""}')
    assert stored("a" * room) == "a" * room
    assert "bytes" in str(refused("a" * (room + 1)))
    assert "bytes" in str(refused("ü" * (room // 2 + 1)))
    assert refused("a" * 10_000_000).path is None


@pytest.mark.parametrize("value", [[1], "text", 1, None, RootModel[int](1)])
def test_a_payload_is_an_object(value: object) -> None:
    with pytest.raises(PayloadError, match="must be an object"):
        payload.encode(value)


def test_a_model_that_cannot_be_dumped_is_refused() -> None:
    class Holder(BaseModel, arbitrary_types_allowed=True):
        thing: object

    with pytest.raises(PayloadError, match=r"Holder cannot be dumped.*\.model_dump") as caught:
        payload.encode(Holder(thing=object()))
    assert caught.value.__cause__ is None, "pydantic's error may quote the value"


class Liar(str):
    def __str__(self) -> str:
        return "another"


class Odd(int):
    def __int__(self) -> int:
        return 99


class Strange(float):
    def __float__(self) -> float:
        return 99.0


def test_subclasses_are_stored_as_the_value_they_extend() -> None:
    assert payload.encode({Liar("a"): [Liar("b"), Odd(5), Strange(2.5)]}) == '{"a":["b",5,2.5]}'
    assert type(payload.check_key(Liar("k"))) is str
    assert payload.check_headers({Liar("a"): Liar("b")}) == {"a": "b"}


class Address(BaseModel):
    zip_code: str = Field(alias="zipCode")


class Shipped(BaseModel):
    order_id: int = Field(alias="orderId")
    to: Address
    on: Any = None


def test_a_model_is_stored_by_the_names_of_its_fields_and_a_handler_reads_it_back() -> None:
    shipped = Shipped(orderId=7, to=Address(zipCode="10115"))
    text = payload.encode(shipped)
    assert json.loads(text) == {"order_id": 7, "to": {"zip_code": "10115"}, "on": None}

    async def whole(body: Shipped) -> None: ...
    async def part(order_id: int, to: Address) -> None: ...

    assert bind(whole, "whole", globals()).bind(json.loads(text)) == {"body": shipped}
    assert bind(part, "part", globals()).bind(json.loads(text)) == {"order_id": 7, "to": shipped.to}
    aliased = {"orderId": 7, "to": {"zipCode": "10115"}}
    assert bind(whole, "whole", globals()).bind(aliased) == {"body": shipped}, "as another language may write it"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=30,
)

ANYTHING = st.recursive(
    st.none()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
    | st.decimals()
    | st.datetimes(timezones=st.none() | st.just(UTC))
    | st.timedeltas()
    | st.complex_numbers()
    | st.uuids()
    | st.sampled_from([Colour.RED, Level.HIGH, object(), User(id=1), Line, Line(Decimal(1)), len]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.dictionaries(st.text() | st.integers() | st.none() | st.just(Size.LARGE), inner, max_size=4)
        | st.frozensets(st.integers())
    ),
    max_leaves=20,
)


def same(left: Any, right: Any) -> bool:
    """Equal, also in type, sign of zero and order of keys."""
    return type(left) is type(right) and repr(left) == repr(right)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_json_comes_back_exactly_or_is_refused_for_a_nul(value: dict[str, Any]) -> None:
    try:
        text = payload.encode(value)
    except PayloadError as error:
        assert "NUL" in str(error)  # noqa: PT017
        assert "\\x00" in repr(value)
    else:
        assert same(json.loads(text), value)


@given(st.dictionaries(st.text(st.characters(exclude_categories=())), ANYTHING, max_size=4))
def test_anything_is_stored_as_clean_json_or_refused_with_a_payload_error(value: dict[str, Any]) -> None:
    try:
        text = payload.encode(value)
    except PayloadError:
        return
    text.encode()
    back = json.loads(text)
    assert "\\x00" not in repr(back)
    assert payload.encode(back) == text


@pytest.mark.parametrize("key", ["", "x" * 257, "a\0", "\ud800", 7, b"a"])
def test_a_key_is_a_bounded_string(key: object) -> None:
    assert payload.check_key("x" * 256) == "x" * 256
    with pytest.raises(PayloadError, match="_key"):
        payload.check_key(key)


@pytest.mark.parametrize("given_id", [UUID(UUID_4), UUID_4, "nonsense", 7, UUID(int=0)])
def test_an_id_is_a_uuid_7(given_id: object) -> None:
    assert payload.check_id(ID) == payload.check_id(str(ID)) == ID
    with pytest.raises(PayloadError, match="UUIDv7"):
        payload.check_id(given_id)


@pytest.mark.parametrize("headers", [{"a": 1}, {1: "a"}, {"a": "\0"}, {"\ud800": "a"}, ["a"], "a"])
def test_headers_are_clean_strings_by_name(headers: object) -> None:
    assert payload.check_headers({"a": "ü"}) == {"a": "ü"}
    with pytest.raises(PayloadError, match="header"):
        payload.check_headers(headers)


def test_headers_are_bounded() -> None:
    with pytest.raises(PayloadError, match="headers are over"):
        payload.encode_headers({"a": "x" * payload.MAX_HEADERS_BYTES})
