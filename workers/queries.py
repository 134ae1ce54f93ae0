"""The SQL and Lua files of this package."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def sql(name: str, schema: str) -> str:
    """The statement in `sql/<name>.sql`, for this schema, without its comment."""
    lines = (files(__package__) / "sql" / f"{name}.sql").read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("--")).replace("{schema}", schema)


@cache
def lua(name: str) -> str:
    """The script in `lua/<name>.lua`."""
    return (files(__package__) / "lua" / f"{name}.lua").read_text()
