"""What the checks read: PostgreSQL within a time limit, Redis with all its servers, settings, and the status of all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any

import psycopg
import redis
from psycopg.rows import TupleRow, dict_row

from outbox import admin
from outbox.admin.streams import opened
from outbox.database import connect
from outbox.names import check_schema
from outbox.redis import Cluster
from outbox.settings import Settings

STATEMENT_TIMEOUT = 5.0
"""Seconds that one statement of a check may take."""

NAME = "outbox doctor"


class Installation:
    """One installation, as settings say where it is. Servers are asked for the first time when a check needs them.

    >>> with closing(Installation(settings)) as installation:
    ...     installation.status().leader
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.schema = check_schema(settings.schema_name)
        self._connection: psycopg.Connection[TupleRow] | None = None
        self._redis: redis.Redis | None = None
        self._info: dict[str, dict[str, Any]] | None = None
        self._status: admin.Status | Exception | None = None

    def close(self) -> None:
        """Leave the servers. Closing twice is fine."""
        if self._connection is not None:
            self._connection.close()
        if self._redis is not None:
            self._redis.close()

    def connection(self) -> psycopg.Connection[TupleRow]:
        """A connection to the database; a new one if the last was lost. Raises `UnreachableError`."""
        if self._connection is None or self._connection.closed:
            self._connection = connect(self.settings.libpq_url(), application_name=NAME)
        return self._connection

    @contextmanager
    def reading(self) -> Iterator[psycopg.Connection[TupleRow]]:
        """The connection within a transaction that can change nothing and whose statements end in time.

        The limits are the transaction's own: behind a pooler the session is others' too.
        """
        connection = self.connection()
        with connection.transaction():
            connection.execute("SET TRANSACTION READ ONLY")
            connection.execute(
                # To compile what is read once takes many times as long as to read it.
                "SELECT set_config('statement_timeout', %s, true), set_config('lock_timeout', '1s', true),"
                " set_config('jit', 'off', true)",
                [f"{STATEMENT_TIMEOUT * 1000:.0f}"],
            )
            yield connection

    def rows(self, name: str, values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """What a statement of `sql/` finds."""
        with self.reading() as connection, connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(_text(name).replace("{schema}", self.schema).encode(), values or {}).fetchall()

    def row(self, name: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
        """The one row that it finds."""
        [found] = self.rows(name, values)
        return found

    def status(self) -> admin.Status:
        """How far everything is, read once; what went wrong with that goes wrong for every check that needs it."""
        if self._status is None:
            try:
                with self.reading() as connection:
                    self._status = admin.status(connection, self.schema)
            except Exception as error:
                self._status = error
        if isinstance(self._status, Exception):
            raise self._status
        return self._status

    def redis(self) -> redis.Redis:
        """A client that gives up after three seconds. Raises `redis.RedisError` when there is no server."""
        if self._redis is None:
            self._redis = opened(self.settings)
        return self._redis

    def redis_info(self) -> dict[str, dict[str, Any]]:
        """What each server of Redis says of itself, read once: one, or the primaries of a cluster, by address."""
        if self._info is None:
            client = self.redis()
            if isinstance(client, Cluster):
                nodes = client.get_primaries()
                asked = {node.name: client.get_redis_connection(node) for node in nodes}
                self._info = {name: node.info() for name, node in asked.items()}
            else:
                self._info = {"Redis": client.info()}
        return self._info


@cache
def _text(name: str) -> str:
    return (files(__package__) / "sql" / f"{name}.sql").read_text("utf-8")
