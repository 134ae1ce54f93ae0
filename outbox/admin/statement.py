"""The SQL statements of this package, from their files."""

from __future__ import annotations

from functools import cache, lru_cache
from importlib.resources import files

from outbox.names import check_schema


@lru_cache(maxsize=256)
def statement(name: str, schema: str, selection: str = "TRUE", group: str = "NULL") -> bytes:
    """A statement of `sql/` for a schema, about what `selection` (of `Selection.conditions`) selects.

    `group` is what `selection.group_of` gives, for statements that group by it.
    """
    text = _text(name).replace("{schema}", check_schema(schema))
    return text.replace("{selection}", selection).replace("{group}", group).encode()


@cache
def _text(name: str) -> str:
    return (files(__package__) / "sql" / f"{name}.sql").read_text("utf-8")
