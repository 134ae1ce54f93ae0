"""Which events, deliveries or dead letters are meant: one value for listings and for what changes them. Pure.

Every command that lists, replays, discards or purges takes a `Selection`, and `Selection.conditions` is the only place
where one becomes SQL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from outbox.names import check_schema


class PayloadField(NamedTuple):
    """A place in the payload and what stands there, as text: `7` fits the number and the string, `null` fits null.

    >>> PayloadField.parse("payload.address.city=Bern")
    PayloadField(path=('address', 'city'), value='Bern')
    """

    path: tuple[str, ...]
    value: str

    @classmethod
    def parse(cls, text: str) -> PayloadField:
        """Read `payload.user_id=7`; a number in the path counts in an array: `payload.items.0.sku=a1`.

        Raises `ValueError` for anything else.
        """
        place, equals, value = text.partition("=")
        root, *path = place.strip().split(".")
        if root != "payload" or not path or not all(path) or not equals:
            raise ValueError(f"{text!r} is not like payload.user_id=7 or payload.address.city=Bern")
        return cls(tuple(path), value)

    def __str__(self) -> str:
        return f"{'.'.join(('payload', *self.path))}={self.value}"


@dataclass(frozen=True)
class Columns:
    """What a statement calls the columns that selections are about.

    Without `handler` and `error` it is about events: then these two are looked for among an event's deliveries.
    """

    id: str
    name: str
    key: str
    at: str
    payload: str
    handler: str | None = None
    error: str | None = None


EVENTS = Columns("e.id", "e.name", "e.key", "e.created_at", "e.payload")
"""A statement over `event AS e`."""
DELIVERIES = Columns("e.id", "e.name", "e.key", "e.created_at", "e.payload", "d.handler", "d.error")
"""A statement that joins `event AS e` with `delivery AS d`."""
LETTERS = Columns("l.event_id", "l.name", "l.key", "l.died_at", "l.payload", "l.handler", "l.error")
"""A statement over `dead_letter AS l`."""


class Conditions(NamedTuple):
    """A selection as SQL: one boolean expression, TRUE for everything, and what its parameters are."""

    sql: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Selection:
    """What fits everything that is given; nothing given selects everything.

    `since` is included and `until` is not; both have a time zone, and are about when an event was added, or when a dead
    letter died. `error` is a part of the error's text, in upper or lower case. `group` is what
    `error_groups` calls errors that differ in numbers and ids only.

    >>> Selection(handler="send_email", since=datetime.now(UTC) - timedelta(hours=2))
    >>> Selection(name="signed_up", payload=(PayloadField.parse("payload.user_id=7"),))
    """

    ids: tuple[UUID, ...] | None = None
    name: str | None = None
    handler: str | None = None
    key: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    payload: tuple[PayloadField, ...] = ()
    error: str | None = None
    group: str | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing is given, so that all there is fits."""
        return self == Selection()

    @property
    def span(self) -> Selection:
        """The part that an index answers: ids and time."""
        return Selection(ids=self.ids, since=self.since, until=self.until)

    @property
    def rest(self) -> Selection:
        """The other part, for which rows must be looked at."""
        return replace(self, ids=None, since=None, until=None)

    def described(self) -> dict[str, Any]:
        """What was given, as JSON values: for the audit row."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _plain(value) for name, value in given.items() if value != getattr(Selection, name)}

    def conditions(self, columns: Columns, schema: str) -> Conditions:
        """As SQL over `columns`: to stand in a WHERE, with the parameters (named `which_…`) to execute it with."""
        found = _Found()
        if self.ids is not None:
            found.add(f"{columns.id} = ANY(%(which_ids)s::uuid[])", ids=list(self.ids))
        if self.name is not None:
            found.add(f"{columns.name} = %(which_name)s", name=self.name)
        if self.key is not None:
            found.add(f"{columns.key} = %(which_key)s", key=self.key)
        if self.since is not None:
            found.add(f"{columns.at} >= %(which_since)s", since=self.since)
        if self.until is not None:
            found.add(f"{columns.at} < %(which_until)s", until=self.until)
        self._of_outcome(found, columns, schema)
        for number, (path, value) in enumerate(self.payload):
            place = f"%(which_path_{number})s::text[]"
            found.add(
                f"coalesce({columns.payload} #>> {place}, ({columns.payload} #> {place})::text)"
                f" = %(which_value_{number})s",
                **{f"path_{number}": list(path), f"value_{number}": value},
            )
        return Conditions(" AND ".join(found.parts) or "TRUE", found.parameters)

    def _of_outcome(self, found: _Found, columns: Columns, schema: str) -> None:
        """Handler and error: of the row itself, or of one and the same delivery of the event."""
        inner = _Found()
        handler, error = columns.handler or "o.handler", columns.error or "o.error"
        if self.handler is not None:
            inner.add(f"{handler} = %(which_handler)s", handler=self.handler)
        if self.error is not None:
            inner.add(f"strpos(lower({error}), lower(%(which_error)s::text)) > 0", error=self.error)
        if self.group is not None:
            inner.add(f"{group_of(error)} = %(which_group)s", group=self.group)
        if columns.handler is None and inner.parts:
            # Without OFFSET 0 it would be planned as a join with all deliveries.
            inner.parts = [
                f"EXISTS (SELECT FROM {check_schema(schema)}.delivery AS o WHERE o.event_id = {columns.id}"
                f" AND o.event_created_at = {columns.at} AND {' AND '.join(inner.parts)} OFFSET 0)"
            ]
        found.parts += inner.parts
        found.parameters |= inner.parameters


def group_of(error: str) -> str:
    """SQL that gives the group of the error in a column: ten hexadecimal digits.

    Of the error's first line, what stands before the message stays as it is (`S3Error: `), and in the message every
    word with a digit in it counts as the same: numbers, ids, addresses, line numbers.
    """
    line = f"split_part({error}, E'\\n', 1)"
    message = rf"coalesce(length(substring({line} FROM '^[A-Za-z_][\w.]*: ')), 0) + 1"
    return rf"left(md5(regexp_replace({line}, '[\w-]*\d[\w.,:+-]*', '#', {message}, 0)), 10)"


class _Found:
    def __init__(self) -> None:
        self.parts: list[str] = []
        self.parameters: dict[str, Any] = {}

    def add(self, condition: str, **parameters: Any) -> None:
        self.parts.append(condition)
        self.parameters |= {f"which_{name}": value for name, value in parameters.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [str(each) for each in value]
    return value.isoformat() if isinstance(value, datetime) else value
