"""What an audit row may quote of contents: whatever was typed, never more than was typed."""

from __future__ import annotations

from typing import Any

import pytest

from outbox.admin.quotes import quotes


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        ({"filter": {"ids": ["0197b6b0"], "handler": "bill", "name": "paid"}, "count": 12345}, set()),
        ({"filter": {"key": "customer-7"}}, {"customer-7"}),
        ({"filter": {"payload": ["payload.mail=ada@x", "payload.n=7"]}}, {"ada@x"}),
        ({"filter": {"error": "no (ada@x), 454"}}, {"ada@x"}),
        ({"edit": ["payload.mail=ada@x", "payload.n=12345.60", "payload.ok=true"]}, {"ada@x", "12345.60"}),
        ({"edit": ['{"a": [{"b": "ada \\"x\\""}], "c": null}']}, {'ada \\"x\\"'}),
        ({"edit": ["what a program calls it"]}, {"what a program calls it"}),
        ({"filter": "(purged)", "edit": "(purged)"}, set()),
    ],
)
def test_values_that_were_typed_are_looked_for_as_they_stand_in_json(
    detail: dict[str, Any], expected: set[str]
) -> None:
    assert quotes(detail) == expected
