"""The SQL statements of this package, from their files."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from outbox.names import check_schema


@cache
def statement(name: str, schema: str) -> bytes:
    """A statement of `sql/` for a schema."""
    text = (files(__package__) / "sql" / f"{name}.sql").read_text("utf-8")
    return text.replace("{schema}", check_schema(schema)).encode()
