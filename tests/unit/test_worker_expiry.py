from __future__ import annotations

import json

import pytest

from workers.expiry import as_json


@pytest.mark.parametrize("text", ["{}", '{"n":  1e2}', '"x"', '["\\u0000"]'])
def test_what_is_json_stays_as_it_was_written(text: str) -> None:
    assert as_json(text) == text


@pytest.mark.parametrize("text", ["", "{", "NaN", '{"n": -Infinity}', "[" * 100_000])
def test_what_is_no_json_to_postgresql_becomes_a_string(text: str) -> None:
    assert json.loads(as_json(text)) == text
