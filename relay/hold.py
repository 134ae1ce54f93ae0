"""Whether somebody holds the relay back: then it leads, and publishes nothing."""

from __future__ import annotations

import psycopg


def held(connection: psycopg.Connection, schema: str) -> bool:
    """Whether the relay is to rest now. Index: hold's primary key."""
    return connection.execute(f"SELECT FROM {schema}.hold WHERE what = 'relay'".encode()).fetchone() is not None
