"""Least privilege: the statements of `roles.sql` for an installation's own role names."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from outbox.errors import ConfigurationError
from outbox.migrations.script import text

Part = Literal["writer", "relay", "worker", "reader"]
"""What a role does in an installation."""


class Grant(NamedTuple):
    """One privilege that a part needs: `Grant("SELECT", "SEQUENCE", "outbox.asleep")`."""

    privilege: str
    kind: str
    """`SCHEMA`, `SEQUENCE`, `ALL TABLES IN SCHEMA` or `TABLE`."""
    name: str


def grants(part: Part, schema: str = "outbox") -> list[Grant]:
    """Every privilege that `roles.sql` gives to a part, one by one.

    >>> grants("writer")[0]
    Grant(privilege='USAGE', kind='SCHEMA', name='outbox')
    """
    given = r"^GRANT (.+) ON (?:(SCHEMA|SEQUENCE|ALL TABLES IN SCHEMA) )?(.+) TO \{" + part + r"\};$"
    return [
        Grant(privilege, kind or "TABLE", name)
        for privileges, kind, names in re.findall(given, text("roles.sql", schema), re.MULTILINE)
        for privilege in privileges.split(", ")
        for name in names.split(", ")
    ]


def roles_sql(
    schema: str = "outbox",
    *,
    writer: str | None = None,
    relay: str | None = None,
    worker: str | None = None,
    reader: str | None = None,
) -> str:
    """What lets each given role do its part and no more. A role that is not given is left out.

    Raises `ConfigurationError` when none is given.

    >>> roles_sql(writer="shop").splitlines()[1]
    'GRANT USAGE ON SCHEMA outbox TO "shop";'
    """
    names = {"{writer}": writer, "{relay}": relay, "{worker}": worker, "{reader}": reader}
    if not any(names.values()):
        raise ConfigurationError("name at least one role: --writer, --relay, --worker or --reader")
    blocks = []
    for block in text("roles.sql", schema).split("\n\n"):
        for placeholder, name in names.items():
            if placeholder in block and name:
                blocks.append(block.strip().replace(placeholder, _quoted(name)))
    return "\n\n".join(blocks) + "\n"


def _quoted(name: str) -> str:
    if "\0" in name or not name.isprintable():
        raise ConfigurationError(f"invalid role name {name!r}")
    return '"' + name.replace('"', '""') + '"'
