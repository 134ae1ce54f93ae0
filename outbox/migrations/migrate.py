"""Applying the migrations: each in one transaction, one process at a time, and never twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from outbox.database import connect
from outbox.errors import SchemaError, UnusableError
from outbox.migrations.script import Script, scripts, text
from outbox.names import check_schema, lock_id

OLDEST_POSTGRESQL = 15
"""Major version. Older ones lack what partitions, sequences and snapshots are asked for here."""

Connection = psycopg.Connection[tuple[Any, ...]]


def check_server(version: int, in_recovery: bool) -> None:
    """Raise `UnusableError` unless a server of this `server_version_num` can be migrated."""
    if version < OLDEST_POSTGRESQL * 10_000:
        found = f"{version // 10_000}.{version % 10_000}"
        raise UnusableError(f"PostgreSQL {OLDEST_POSTGRESQL} or newer is needed, this server is {found}")
    if in_recovery:
        raise UnusableError("this PostgreSQL server is a read-only standby; give the address of the primary")


def apply(
    url: str,
    schema: str = "outbox",
    *,
    trigger: bool = True,
    progress: Callable[[str], None] = lambda message: None,
) -> list[int]:
    """Bring the schema up to date and return the numbers of the migrations that were applied now.

    Safe to run again and by several at once: the second waits for the first and finds nothing to do. `trigger=False`
    removes the trigger that wakes the relay, for applications that use two-phase commit (PostgreSQL refuses to prepare
    a transaction that notified). `progress` is told what happens, a line at a time.

    Raises `UnusableError` for a server that is too old or a standby, `UnreachableError` when there is none, and
    `SchemaError` when a migration fails; nothing of that migration is left then.

    >>> apply("postgresql://owner@db/shop")
    [1, 2]
    """
    done: list[int] = []
    with connect(url) as connection:
        check_server(*_server(connection))
        with _translated("preparing"), connection.transaction():
            _lock(connection, schema, progress)
            connection.execute(text("bookkeeping.sql", schema).encode())
        for script in scripts(schema):
            with _translated(script.title), connection.transaction():
                _lock(connection, schema, progress)
                if script.version in applied(connection, schema):
                    continue
                progress(f"applying {script.title}")
                connection.execute(_record(script, schema).encode())
                connection.execute(script.sql.encode())
                done.append(script.version)
        if not trigger:
            with _translated("removing the trigger"), connection.transaction():
                connection.execute(drop_trigger(schema).encode())
    return done


def applied(connection: Connection, schema: str) -> dict[int, str]:
    """The migrations a database has, version → checksum; empty without our schema."""
    known = connection.execute("SELECT to_regclass(%s) IS NOT NULL", [f"{check_schema(schema)}.migration"]).fetchone()
    if known is None or not known[0]:
        return {}
    rows = connection.execute(
        sql.SQL("SELECT version, checksum FROM {}.migration").format(sql.Identifier(schema))
    ).fetchall()
    return dict(rows)


def pending(url: str, schema: str = "outbox") -> list[Script]:
    """The migrations that `apply` would apply now. Changes nothing. Raises as `apply` does."""
    with connect(url) as connection:
        check_server(*_server(connection))
        have = applied(connection, schema)
    return [script for script in scripts(schema) if script.version not in have]


def printed(schema: str = "outbox", *, trigger: bool = True) -> str:
    """Everything `apply` does, as one SQL script to review or to run with psql. Needs no database.

    A migration that was applied before fails at its first statement and changes nothing.
    """
    parts = ["BEGIN;", text("bookkeeping.sql", schema), "COMMIT;"]
    for script in scripts(schema):
        parts += ["", f"-- {script.title}", "BEGIN;", _record(script, schema), script.sql, "COMMIT;"]
    if not trigger:
        parts += ["", drop_trigger(schema)]
    return "\n".join(parts) + "\n"


def drop_trigger(schema: str) -> str:
    """The statement that removes the trigger which wakes the relay."""
    return f"DROP TRIGGER IF EXISTS wake_relay ON {check_schema(schema)}.event;"


def _record(script: Script, schema: str) -> str:
    return (
        f"INSERT INTO {check_schema(schema)}.migration (version, name, checksum)\n"
        f"  VALUES ({script.version}, '{script.name}', '{script.checksum}');"
    )


def _server(connection: Connection) -> tuple[int, bool]:
    row = connection.execute("SELECT current_setting('server_version_num')::int, pg_is_in_recovery()").fetchone()
    assert row is not None
    return row[0], row[1]


def _lock(connection: Connection, schema: str, progress: Callable[[str], None]) -> None:
    # Held to the end of the transaction, not of the session: it works through a transaction pooler too.
    connection.execute("SET LOCAL statement_timeout = 0")
    number = lock_id("migrate", schema)
    got = connection.execute("SELECT pg_try_advisory_xact_lock(%s)", [number]).fetchone()
    if got is None or not got[0]:
        progress("waiting for another migration to end")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [number])


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise SchemaError(f"{what}: {error.diag.message_primary}; migrate as the schema's owner") from error
    except psycopg.Error as error:
        raise SchemaError(f"{what} failed, nothing of it was kept: {error.diag.message_primary or error}") from error
