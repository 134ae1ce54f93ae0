"""The SQL statements of this package, from their files."""

from __future__ import annotations

from functools import cache, lru_cache
from importlib.resources import files

from outbox.names import check_schema


@lru_cache(maxsize=256)
def statement(name: str, schema: str, selection: str = "TRUE", **parts: str) -> bytes:
    """A statement of `sql/` for a schema, about what `selection` (of `Selection.conditions`) selects.

    `parts` are further texts of ours that stand in it by name.
    """
    text = _text(name)
    for part, value in {**parts, "selection": selection, "schema": check_schema(schema)}.items():
        text = text.replace(f"{{{part}}}", value)
    return text.encode()


@cache
def _text(name: str) -> str:
    return (files(__package__) / "sql" / f"{name}.sql").read_text("utf-8")
