"""Whether a database's schema is what the migrations make: nothing missing, nothing else, nothing changed by hand.

What should be there is not kept anywhere: the applied migrations are run again in a schema of a random name, both are
read from the catalog, and the transaction is rolled back. So it holds on every server version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

import psycopg
from psycopg import sql

from outbox.database import connect
from outbox.errors import SchemaError
from outbox.migrations.migrate import Connection, applied, check_server, drop_trigger
from outbox.migrations.script import scripts, text


@dataclass(frozen=True)
class Difference:
    """One thing in the schema, `index event_xid` for example, that is not as the migrations make it."""

    kind: Literal["missing", "unexpected", "changed"]
    thing: str
    expected: str | None = None
    found: str | None = None

    def __str__(self) -> str:
        short = [text for text in (self.expected, self.found) if text and "\n" not in text]
        if self.kind == "changed" and len(short) == 2:
            return f"changed: {self.thing}: expected {self.expected}, found {self.found}"
        return f"{self.kind}: {self.thing}"


@dataclass(frozen=True)
class Check:
    """What `check` found. `pending` are migrations to apply, `unknown` ones of a newer release, `edited` ones that were
    applied from another text than this release has."""

    pending: tuple[str, ...] = ()
    unknown: tuple[int, ...] = ()
    edited: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the database is exactly as this release expects."""
        return not (self.pending or self.unknown or self.edited or self.differences)

    def lines(self) -> list[str]:
        """What is wrong, a line each, for people."""
        return [
            *(f"not applied: {title}" for title in self.pending),
            *(f"applied by a newer release: {version:04}" for version in self.unknown),
            *(f"applied from another text: {title}" for title in self.edited),
            *map(str, self.differences),
        ]


def compare(expected: Mapping[str, str], found: Mapping[str, str]) -> tuple[Difference, ...]:
    """What differs between two descriptions of a schema, thing → definition."""
    differences = []
    for thing in sorted(expected.keys() | found.keys()):
        want, have = expected.get(thing), found.get(thing)
        if want == have:
            continue
        kind: Literal["missing", "unexpected", "changed"] = (
            "missing" if have is None else "unexpected" if want is None else "changed"
        )
        differences.append(Difference(kind, thing, want, have))
    return tuple(differences)


def check(url: str, schema: str = "outbox", *, trigger: bool = True, timeout: float | None = None) -> Check:
    """Compare the database with what this release's migrations make. Leaves nothing behind.

    `trigger=False` expects no trigger that wakes the relay. `timeout` is in seconds and for each statement. Needs the
    right to create a schema; raises `SchemaError` without it, and otherwise as `migrations.apply` does.

    >>> check("postgresql://owner@db/shop").ok
    True
    """
    with connect(url) as connection, connection.transaction(force_rollback=True):
        if timeout is not None:
            for limit in ("statement_timeout", "lock_timeout"):
                connection.execute("SELECT set_config(%s, %s, true)", [limit, f"{timeout * 1000:.0f}"])
        row = connection.execute("SELECT current_setting('server_version_num')::int").fetchone()
        check_server(row[0] if row else 0, in_recovery=False)
        have = applied(connection, schema)
        known = {script.version: script for script in scripts(schema)}
        try:
            expected = _expected(connection, schema, have, trigger) if have else {}
        except psycopg.errors.InsufficientPrivilege as error:
            raise SchemaError(
                "--check builds the schema anew and rolls back: run it as a role that may create"
            ) from error
        return Check(
            pending=tuple(script.title for version, script in known.items() if version not in have),
            unknown=tuple(sorted(have.keys() - known.keys())),
            edited=tuple(
                script.title
                for version, script in known.items()
                if have.get(version, script.checksum) != script.checksum
            ),
            differences=compare(expected, _describe(connection, schema)) if have else (),
        )


def _expected(connection: Connection, schema: str, have: Mapping[int, str], trigger: bool) -> dict[str, str]:
    stage = f"check_{uuid4().hex[:16]}"
    connection.execute(text("bookkeeping.sql", stage).encode())
    for script in scripts(stage):
        if script.version in have:
            connection.execute(script.sql.encode())
    if not trigger:
        connection.execute(drop_trigger(stage).encode())
    return {thing: definition.replace(stage, schema) for thing, definition in _describe(connection, stage).items()}


def _describe(connection: Connection, schema: str) -> dict[str, str]:
    # Names of the schema's own things are then printed without it.
    connection.execute(sql.SQL("SET LOCAL search_path = {}").format(sql.Identifier(schema)))
    return dict(connection.execute(text("catalog.sql", schema).encode(), {"schema": schema}).fetchall())
