"""What of a handler's return value is kept, and what middleware may still say of it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import workers
from workers.middleware import put_in_place
from workers.outcome import DONE, Done, Snoozed
from workers.queries import sql
from workers.result import LARGEST, NotKept, kept

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


class Report(BaseModel):
    pages: int


@dataclass
class Sent:
    to: str


class Hostile(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("s3cret")


class Nothing(Enum):
    NOTHING = None


@given(JSON.filter(lambda value: value is not None))
def test_a_json_value_is_kept_as_it_is_in_plain_ascii(value: Any) -> None:
    done = kept(value)
    assert isinstance(done, Done)
    assert done.result == value
    assert done.json is not None
    assert done.json.isascii()
    assert json.loads(done.json) == value


@pytest.mark.parametrize(
    ("value", "result"),
    [
        ((1, 2), [1, 2]),
        (False, False),
        (0, 0),
        ("", ""),
        ("a NUL \0 is JSON", "a NUL \0 is JSON"),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        ({"due": date(2026, 1, 31)}, {"due": "2026-01-31"}),
        (Report(pages=3), {"pages": 3}),
        (Sent("ada"), {"to": "ada"}),
        (Done(result=(1, 2)), [1, 2]),
        (Done({"pages": 3}), {"pages": 3}),
    ],
)
def test_values_become_json_as_in_payloads_and_done_carries_one(value: Any, result: Any) -> None:
    assert kept(value) == Done(result)


@pytest.mark.parametrize("value", [None, Done(), Done(result=None), DONE, Nothing.NOTHING, Snoozed(1, "no")])
def test_none_and_an_outcome_without_a_result_are_none(value: Any) -> None:
    assert kept(value) is DONE


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "type"),
    [
        ({"s3cret"}, "set"),
        (b"s3cret", "bytes"),
        ({"s3cret": {1}}, "dict"),
        (float("nan"), "float"),
        (User(id=7), "User"),
        ([User(id=7)], "list"),
        (object(), "object"),
        (Done(result=object()), "object"),
        ("s3cret \ud800", "str"),
        ({"s3cret \ud800": 1}, "dict"),
        ({1: "s3cret"}, "dict"),
        pytest.param(10**5000, "int", id="many digits"),
        (LOOP, "list"),
        (Hostile(), "Hostile"),
        (Hostile, "type"),
    ],
)
def test_what_is_no_json_is_not_kept_and_only_its_type_is_told(value: Any, type: str) -> None:
    assert kept(value) == NotKept(type, "it is not JSON")


@pytest.mark.parametrize(
    ("fits", "larger"),
    [
        ("a" * (LARGEST - 2), "a" * (LARGEST - 1)),
        ("ü" * (LARGEST // 6), "ü" * (LARGEST // 6) + "a"),
        ([1] * (LARGEST // 2 - 1), [1] * (LARGEST // 2)),
        ({"n": "a" * (LARGEST - 8)}, {"n": "a" * (LARGEST - 7)}),
    ],
)
def test_eight_kilobytes_of_json_are_kept_and_a_byte_more_is_not(fits: Any, larger: Any) -> None:
    assert kept(fits) == Done(fits)
    assert kept(larger) == NotKept(type(larger).__name__, "its JSON is larger than 8,192 bytes")


def test_a_large_value_is_not_walked_through() -> None:
    walked = 0

    class Rows(list[int]):
        def __iter__(self) -> Iterator[int]:
            nonlocal walked
            for row in super().__iter__():
                walked += 1
                yield row

    assert isinstance(kept(Rows([0] * 1_000_000)), NotKept)
    assert walked <= LARGEST + 1


def test_a_result_travels_between_processes_and_nobody_else_says_how_it_is_stored() -> None:
    done = kept({"pages": 3})
    there = pickle.loads(pickle.dumps(done))
    assert (there, there.json) == (done, '{"pages":3}')
    assert kept(there) is there
    assert pickle.loads(pickle.dumps(kept(object()))) == kept(object())
    with pytest.raises(TypeError):
        Done(json="no JSON")  # type: ignore[call-arg]
    assert hash(done) == hash(there)


@pytest.mark.parametrize(
    ("final", "told"),
    [
        (Done({"pages": 3}), None),
        (Done(), None),
        (Done("s3cret"), "Done with another result"),
        (workers.Dead("no"), "Dead(reason='no')"),
    ],
)
def test_another_result_in_the_place_of_a_committed_one_is_told_without_its_value(final: Any, told: str | None) -> None:
    assert put_in_place(Done({"pages": 3}), final) == told


def test_done_in_the_place_of_a_failure_that_was_committed_is_told() -> None:
    assert put_in_place(workers.Retry(5), Done("s3cret")) == "Done()"


@pytest.mark.parametrize("name", ["done", "finish_done", "finish_once"])
def test_a_statement_with_results_does_otherwise_what_the_one_without_does(name: str) -> None:
    with_result = sql(f"{name}_with_result", "outbox")
    for part in (" result = e.result::json,", ", e.result::json", ", %(results)s::text[]", ", result"):
        with_result = with_result.replace(part, "")
    assert with_result.split() == sql(name, "outbox").split()
