"""The SQL and Lua files beside this module, loaded once."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from outbox.names import check_schema


@cache
def sql(name: str, schema: str) -> bytes:
    """The statement in `sql/<name>.sql` for this schema."""
    text = (files(__package__) / "sql" / f"{name}.sql").read_text()
    return text.replace("{schema}", check_schema(schema)).encode()


@cache
def lua(name: str) -> str:
    """The script in `lua/<name>.lua`."""
    return (files(__package__) / "lua" / f"{name}.lua").read_text()
