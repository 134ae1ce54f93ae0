"""The worker's own connections to PostgreSQL: statements that are tried until the server takes them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

import psycopg

from outbox import database
from workers.errors import RowRefusedError
from workers.patience import until_back
from workers.queries import sql
from workers.refusal import refusal

STATEMENT_TIMEOUT = 30.0
"""Seconds after which a statement's connection is taken for dead."""

PREPARED = ("seen",)
"""What is asked for each single event when few come."""

NEVER = sys.maxsize
"""Executions after which a statement is prepared that did not ask for it."""

SET_IF_DIRECT = "SELECT set_config(%s, %s, false) WHERE pg_backend_pid() = %s"
"""Gives the session a setting, and returns a row, where no pooler stands between: those tell clients the number of a
server process of their own making. What is left on a pooler's session is the next client's."""

LOCK_TIMEOUT = 0.2
"""Seconds that a statement waits for a row that another transaction holds. Only one that stands still takes so long."""

Unreachable = (psycopg.Error, OSError, TimeoutError)


class Database:
    """One autocommit connection that is reopened when it breaks.

    `up` is shared by all of a worker's connections and says whether PostgreSQL answers. Statements that are asked for
    each single event are prepared, with a plan for all values, where no pooler stands in between: planning takes
    longer than running. All others are planned anew, so that every plan sees its partitions.

    With a `lock_timeout` in seconds no statement waits longer for a lock, so that a row that is held stops nobody else
    who asks here; what met it is tried again.
    """

    def __init__(
        self, url: str, schema: str, up: asyncio.Event, log: Any, *, lock_timeout: float | None = None
    ) -> None:
        self._url = url
        self._schema = schema
        self._up = up
        self._log = log
        self._lock_timeout = f"{(lock_timeout or 0) * 1000:.0f}"
        self._prepared = {sql(name, schema) for name in PREPARED}
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._cursor: psycopg.AsyncCursor[Any]
        self._direct = False
        self._turn = asyncio.Lock()
        self.refused: str | None = None
        """What somebody has to mend before it takes what it was last asked for."""

    async def fetch(self, name: str, params: Mapping[str, Any]) -> list[Any]:
        """The rows of `sql/<name>.sql`. Waits for PostgreSQL however long; every statement must bear repetition."""
        return await self.query(sql(name, self._schema), params)

    async def write(self, name: str, params: Mapping[str, Any]) -> list[Any]:
        """Like `fetch`, but raises `RowRefusedError` for what concerns one of the rows: no waiting mends it, or another
        transaction holds it."""
        return await self._until(sql(name, self._schema), params, Unreachable)

    async def query(self, statement: str, params: Mapping[str, Any]) -> list[Any]:
        """Like `fetch`, for the text of a statement."""
        return await self._until(statement, params, (*Unreachable, RowRefusedError))

    async def _until(
        self, statement: str, params: Mapping[str, Any], errors: tuple[type[BaseException], ...]
    ) -> list[Any]:
        try:
            return await self.once(statement, params)
        except errors as error:
            self._lost(error)
        async for attempt in until_back(errors):
            with attempt:
                rows = await self.once(statement, params)
        self._log.info("postgres.back")
        return rows

    async def once(self, statement: str, params: Mapping[str, Any]) -> list[Any]:
        """Run a statement without a second try."""
        async with self._turn:
            try:
                async with asyncio.timeout(STATEMENT_TIMEOUT):
                    if self._connection is None or self._connection.closed:
                        self._connection = await self._connect()
                        # One for all statements: psycopg learns once how to send the values.
                        self._cursor = self._connection.cursor()
                    if self._direct or self._lock_timeout == "0":
                        rows = await self._run(statement, params)
                    else:
                        # Nothing may be left on a session of a pooler.
                        async with self._connection.transaction():
                            await self._cursor.execute(f"SET LOCAL lock_timeout = {self._lock_timeout}")
                            rows = await self._run(statement, params)
            except BaseException as error:
                if (refused := refusal(error)) is not None:
                    raise refused from error
                self.refused = database.refused(error)
                connection, self._connection = self._connection, None
                if connection is not None:
                    await connection.close()
                raise
        self._up.set()
        self.refused = None
        return rows

    async def _run(self, statement: str, params: Mapping[str, Any]) -> list[Any]:
        cursor = self._cursor
        await cursor.execute(statement, params, prepare=self._direct and statement in self._prepared)
        return await cursor.fetchall() if cursor.description else []

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        connection = await psycopg.AsyncConnection.connect(
            self._url,
            autocommit=True,
            prepare_threshold=NEVER,
            connect_timeout=5,
            application_name="outbox worker",
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )
        for setting in (("plan_cache_mode", "force_generic_plan"), ("lock_timeout", self._lock_timeout)):
            cursor = await connection.execute(SET_IF_DIRECT, [*setting, connection.info.backend_pid], prepare=False)
            self._direct = await cursor.fetchone() is not None
        return connection

    def _lost(self, error: BaseException) -> None:
        if isinstance(error, RowRefusedError):
            return
        if self._up.is_set():
            self._log.warning("postgres.lost", error=type(error).__name__, sqlstate=getattr(error, "sqlstate", None))
        self._up.clear()

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None


def array(values: list[str]) -> str:
    """A PostgreSQL array of plain words (ids, numbers, handler names): nothing in them needs quoting."""
    return "{" + ",".join(values) + "}"
