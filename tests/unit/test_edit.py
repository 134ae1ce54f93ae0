"""Editing payloads: merge patches as RFC 7396 has them, values at a path, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.admin import Edit
from outbox.errors import PayloadError
from outbox.payload import MAX_BYTES


def edited(payload: Any, *texts: str) -> Any:
    return json.loads(Edit.parse(texts).apply(json.dumps(payload)))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["payload.n=2"], {"n": 2, "a": {"b": [1, {"c": 0}]}}),
        (["payload.n=two"], {"n": "two", "a": {"b": [1, {"c": 0}]}}),
        (['payload.n="2"'], {"n": "2", "a": {"b": [1, {"c": 0}]}}),
        (["payload.n=null"], {"n": None, "a": {"b": [1, {"c": 0}]}}),
        (["payload.n="], {"n": "", "a": {"b": [1, {"c": 0}]}}),
        (["payload.a.b.1.c=x=y"], {"n": 1, "a": {"b": [1, {"c": "x=y"}]}}),
        (["payload.n.m.k=1"], {"n": {"m": {"k": 1}}, "a": {"b": [1, {"c": 0}]}}),
        (['{"n": null, "a": {"d": 1}}'], {"a": {"b": [1, {"c": 0}], "d": 1}}),
        (['{"a": [1]}', "payload.a.0=2"], {"n": 1, "a": [2]}),
    ],
)
def test_an_edit_changes_what_it_names_and_nothing_else(texts: list[str], expected: Any) -> None:
    assert edited({"n": 1, "a": {"b": [1, {"c": 0}]}}, *texts) == expected


@pytest.mark.parametrize("text", ["n=1", "payload=1", "payload.=1", "payload.n", "{", "[1]", ""])
def test_what_is_no_edit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"payload\.user_id=7|no JSON"):
        Edit.parse([text])


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 5000 + "1" + "}" * 5000,
        '{"a":' * 100 + "1" + "}" * 100,
        f"payload.{'.'.join('a' * 3000)}=1",
        f"payload.a={'[' * 100_000}",
        "payload.a=1e400",
        f"payload.a={'9' * 5000}",
        "payload.a=NaN",
        r'payload.a="\ud800"',
    ],
)
def test_what_handlers_could_not_read_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"64 levels|too large|limit|not JSON|surrogate") as refused:
        Edit.parse([text])
    assert len(str(refused.value)) < 400


def test_numbers_stay_as_they_are_written() -> None:
    payload = '{"n":1,"a":[123456789.123456789012345678,{"b":1.10}],"z":-0.0,"i":-0,"big":1E400,"text":"1.10 ü"}'
    edited = Edit.parse(["payload.n=2.50", '{"m": 1e5}']).apply(payload)
    assert edited == payload.replace('"n":1', '"n":2.50')[:-1] + ',"m":1e5}'


def test_the_text_of_numbers_counts_for_the_size_of_a_payload() -> None:
    text = "1." + "0" * MAX_BYTES
    with pytest.raises(PayloadError, match="the limit is"):
        Edit.parse(["payload.n=1"]).apply(f'{{"a":{text}}}')
    fits = f'{{"a":[{",".join(["1"] * (MAX_BYTES // 2 - 10))}]}}'
    assert len(Edit.parse(["payload.n=1"]).apply(fits)) == len(fits) + len(',"n":1')


def test_a_payload_that_may_not_be_stored_is_refused() -> None:
    with pytest.raises(PayloadError):
        edited({}, r'payload.n="\u0000"')
    with pytest.raises(ValueError, match="no place '5' in an array of 1"):
        edited({"a": [1]}, "payload.a.5=1")


PLAIN = st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=2)
JSON = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab"), inner, max_size=3)
)
OBJECTS = st.dictionaries(st.text("ab", min_size=1, max_size=1), JSON, max_size=3)


@given(OBJECTS, OBJECTS)
def test_a_merge_patch_applied_twice_is_one_applied_once(payload: Any, patch: Any) -> None:
    once = edited(payload, json.dumps(patch))
    assert edited(once, json.dumps(patch)) == once
    assert all(once[name] == value for name, value in payload.items() if name not in patch)
    assert not any(name in once for name, value in patch.items() if value is None)
