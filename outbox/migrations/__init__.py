"""Versioned migrations: numbered SQL files in this folder, applied in order, each in one transaction."""

from __future__ import annotations

from importlib.resources import files

import psycopg
from psycopg import sql

from outbox.names import check_schema, lock_id


def scripts(schema: str) -> dict[int, str]:
    """The SQL of every migration by its number, for this schema."""
    check_schema(schema)
    found = sorted(f.name for f in files(__package__).iterdir() if f.name[:4].isdigit())
    return {int(name[:4]): (files(__package__) / name).read_text().replace("{schema}", schema) for name in found}


def apply(url: str, schema: str = "outbox") -> list[int]:
    """Bring the schema up to date and return the numbers of the migrations that were applied. Safe to run again."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [lock_id("migrate", schema)])
        with connection.transaction():
            name = sql.Identifier(schema)
            connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(name))
            connection.execute(
                sql.SQL(
                    "CREATE TABLE IF NOT EXISTS {}.migration (version integer PRIMARY KEY,"
                    " applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
                ).format(name)
            )
            rows = connection.execute(sql.SQL("SELECT version FROM {}.migration").format(name)).fetchall()
            due = {number: script for number, script in scripts(schema).items() if (number,) not in rows}
            for number, script in due.items():
                connection.execute(script.encode())
                connection.execute(sql.SQL("INSERT INTO {}.migration (version) VALUES (%s)").format(name), [number])
        return list(due)
