"""What selects events and dead letters, before it meets a database."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest

from outbox.admin.selection import EVENTS, LETTERS, PayloadField, Selection

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("payload.user_id=7", ("user_id",), "7"),
        ("payload.address.city=Bern", ("address", "city"), "Bern"),
        ("payload.items.0.sku=a=b", ("items", "0", "sku"), "a=b"),
        ("payload.note=", ("note",), ""),
    ],
)
def test_a_payload_field_is_read_and_written_as_it_is_typed(text: str, path: tuple[str, ...], value: str) -> None:
    field = PayloadField.parse(text)
    assert field == PayloadField(path, value)
    assert str(field) == text


@pytest.mark.parametrize("text", ["", "user_id=7", "payload", "payload=7", "payload.user_id", "payload..x=1", "=7"])
def test_what_is_no_payload_field_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not like payload\.user_id=7"):
        PayloadField.parse(text)


def test_only_what_is_given_becomes_a_condition() -> None:
    assert Selection().conditions(LETTERS, "outbox") == ("TRUE", {})
    assert Selection(name="a").conditions(EVENTS, "outbox") == ("e.name = %(which_name)s", {"which_name": "a"})
    assert Selection().everything
    assert not Selection(ids=()).everything


def test_no_value_that_was_given_stands_in_the_sql() -> None:
    given = "x'; DROP TABLE outbox.event; --"
    which = Selection(
        name=given, handler=given, key=given, error=given, group=given, payload=(PayloadField((given,), given),)
    )
    for columns in (EVENTS, LETTERS):
        assert "DROP" not in which.conditions(columns, "outbox").sql


def test_what_was_given_is_described_as_json_for_the_audit() -> None:
    which = Selection(
        ids=(UUID(int=7),), since=NOW, payload=(PayloadField.parse("payload.a.b=1"),), error="boom", group="0a1b2c3d4e"
    )
    assert json.loads(json.dumps(which.described())) == {
        "ids": [str(UUID(int=7))],
        "since": NOW.isoformat(),
        "payload": ["payload.a.b=1"],
        "error": "boom",
        "group": "0a1b2c3d4e",
    }
    assert Selection().described() == {}
    assert Selection(ids=()).described() == {"ids": []}
