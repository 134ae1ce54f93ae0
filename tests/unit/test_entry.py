"""The stream entry's codec."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox import entry, payload
from outbox.event import Event

text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"))
events = st.builds(
    Event,
    id=st.uuids(),
    name=st.from_regex(r"[A-Za-z][A-Za-z0-9_.:/-]{0,127}", fullmatch=True),
    key=st.none() | text.filter(bool),
    payload_json=st.dictionaries(text, text | st.integers() | st.none()).map(payload.encode),
    headers=st.dictionaries(text, text),
    created_at=st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)),
)


@given(events)
def test_an_entry_decodes_to_the_event_that_was_encoded(event: Event) -> None:
    assert entry.decode(entry.encode(event)) == event


@given(st.datetimes(timezones=st.just(UTC)))
def test_microseconds_are_exact(moment: datetime) -> None:
    assert entry.from_microseconds(entry.to_microseconds(moment)) == moment


@pytest.mark.parametrize("broken", [{}, {b"id": b"x"}, {b"id": b"\xff", b"headers": b""}])
def test_an_entry_of_somebody_else_is_a_key_or_value_error(broken: dict[bytes, bytes]) -> None:
    with pytest.raises((KeyError, ValueError)):
        entry.decode(broken)
