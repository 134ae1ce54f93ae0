"""Changing the partitions of `event` and `delivery`: making, filling from the default one, emptying, dropping.

Each change is one short transaction that waits for its locks for `LOCK_TIMEOUT` at the most: writers queue behind a
lock that is waited for, so that is how long one of them can be held up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime

import psycopg
from psycopg import sql

from relay import scripts
from relay.retention import Partition, bounds

LOCK_TIMEOUT = 0.05
"""Seconds that a change waits for a lock before it gives up, to be tried again."""

TIME_COLUMN = {"event": "created_at", "delivery": "event_created_at"}

InTheWay = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    # The change would have taken longer than writers may wait for it.
    psycopg.errors.QueryCanceled,
    # Rows for a partition that was about to be attached came into the default one.
    psycopg.errors.CheckViolation,
)
"""What a change fails with when it came at the wrong moment."""


class Partitions:
    """The partitions of one schema. `may_block` is for how many seconds a change may keep writers waiting."""

    def __init__(self, connection: psycopg.Connection, schema: str, may_block: float) -> None:
        self._connection = connection
        self._schema = schema
        self._may_block = may_block

    def all(self) -> list[Partition]:
        """What there is now."""
        rows = self._connection.execute(scripts.sql("partitions", self._schema)).fetchall()
        return [Partition(table, name, lower, upper, default) for table, name, default, lower, upper in rows]

    def may_change(self) -> bool:
        """Whether this role may make and drop partitions: it owns the tables, or is a member of the role that does."""
        row = self._connection.execute(
            "SELECT bool_and(pg_has_role(c.relowner, 'USAGE')) AND has_schema_privilege(%s, 'CREATE')"
            " FROM pg_class AS c WHERE c.oid IN (to_regclass(%s), to_regclass(%s))",
            [self._schema, f"{self._schema}.event", f"{self._schema}.delivery"],
        ).fetchone()
        return row is not None and bool(row[0])

    def waiting(self, partition: Partition) -> dict[date, int]:
        """How many rows of which UTC day a default partition holds. Reads all of it, which is next to nothing when all
        is well."""
        rows = self._connection.execute(
            sql.SQL(
                "SELECT date_trunc('day', {column}, 'UTC') AT TIME ZONE 'UTC', count(*) FROM {part}"
                " WHERE {column} >= '1970-01-01' AND {column} < '9999-01-01' GROUP BY 1"
            ).format(column=sql.Identifier(TIME_COLUMN[partition.table]), part=self._place(partition.name))
        ).fetchall()
        return {moment.date(): count for moment, count in rows}

    def make(self, table: str, day: date, source: Partition | None) -> tuple[str, int]:
        """Make a day's partition and move what the default one, `source`, holds of it along, with its seq and xid. Its
        name, and how many rows were moved. Without `source` nothing of that day may be there.

        Raises one of `InTheWay` when that cannot be done without keeping writers waiting; nothing is changed then.
        """
        name = f"{table}_p{day:%Y%m%d}"
        lower, upper = bounds(day)
        part, column = self._place(name), sql.Identifier(TIME_COLUMN[table])
        inside = sql.SQL("{column} >= {lower} AND {column} < {upper}").format(
            column=column, lower=sql.Literal(lower), upper=sql.Literal(upper)
        )
        moved = 0
        with self._change(table) as connection:
            # The constraint says what attaching would otherwise read the table for.
            connection.execute(
                sql.SQL(
                    "CREATE TABLE {part} (LIKE {table} INCLUDING ALL,"
                    " CONSTRAINT bounds CHECK ({column} IS NOT NULL AND {inside}))"
                ).format(part=part, table=self._place(table), column=column, inside=inside)
            )
            self._give_to_owner(table, name)
            if source is not None:
                place = self._place(source.name)
                # On the whole table: a writer that had chosen the default partition already would fail once this one
                # is attached.
                connection.execute(sql.SQL("LOCK TABLE ONLY {} IN SHARE ROW EXCLUSIVE MODE").format(self._place(table)))
                moved = connection.execute(
                    sql.SQL(
                        "WITH moved AS (DELETE FROM {source} WHERE {inside} RETURNING *)"
                        " INSERT INTO {part} SELECT * FROM moved"
                    ).format(source=place, inside=inside, part=part)
                ).rowcount
            connection.execute(
                sql.SQL("ALTER TABLE {table} ATTACH PARTITION {part} FOR VALUES FROM ({lower}) TO ({upper})").format(
                    table=self._place(table), part=part, lower=sql.Literal(lower), upper=sql.Literal(upper)
                )
            )
            connection.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT bounds").format(part))
        return name, moved

    def empty(self, partition: Partition, allowed: Callable[[], bool], noted: Callable[[], None]) -> None:
        """Empty a partition if `allowed()` still says so when nobody can change it any more; `noted()` runs in the same
        transaction. This needs a lock that no writer is after."""
        part = self._place(partition.name)
        with self._change(partition.table) as connection:
            connection.execute(sql.SQL("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE").format(part))
            if allowed():
                noted()
                row = connection.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(part)).fetchone()
                if row is not None and row[0]:
                    connection.execute(sql.SQL("TRUNCATE ONLY {}").format(part))

    def drop(self, partition: Partition, allowed: Callable[[], bool]) -> bool:
        """Drop a partition that was emptied, if `allowed()` still says so; whether it did.

        This takes a lock on the whole table: where writers are always in long transactions it may have to be tried for
        long, and costs nothing then.
        """
        part = self._place(partition.name)
        with self._change(partition.table) as connection:
            connection.execute(
                sql.SQL("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE").format(self._place(partition.table))
            )
            connection.execute(sql.SQL("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE").format(part))
            if not allowed():
                return False
            connection.execute(sql.SQL("DROP TABLE {}").format(part))
        return True

    def clear(self, default: Partition, lower: datetime, upper: datetime, most: int) -> int:
        """Delete up to `most` rows of a range from a default partition, but no retries that are to come; how many."""
        column = sql.Identifier(TIME_COLUMN[default.table])
        keep = sql.SQL(" AND state <> 'retrying'") if default.table == "delivery" else sql.SQL("")
        return self._connection.execute(
            sql.SQL(
                "DELETE FROM {part} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {part}"
                " WHERE {column} >= %s AND {column} < %s{keep} LIMIT %s))"
            ).format(part=self._place(default.name), column=column, keep=keep),
            [lower, upper, most],
        ).rowcount

    @contextmanager
    def _change(self, table: str) -> Iterator[psycopg.Connection]:
        """A transaction with its limits, one at a time for a table; this lock is in no writer's way."""
        with self._connection.transaction():
            for name, seconds in (("lock_timeout", LOCK_TIMEOUT), ("statement_timeout", self._may_block)):
                self._connection.execute("SELECT set_config(%s, %s, true)", [name, f"{seconds * 1000:.0f}ms"])
            self._connection.execute(
                sql.SQL("LOCK TABLE ONLY {} IN SHARE UPDATE EXCLUSIVE MODE").format(self._place(table))
            )
            yield self._connection

    def _give_to_owner(self, table: str, name: str) -> None:
        """A member of the owner's role makes partitions for the owner."""
        row = self._connection.execute(
            "SELECT r.rolname FROM pg_class AS c JOIN pg_roles AS r ON r.oid = c.relowner"
            " WHERE c.oid = to_regclass(%s) AND r.rolname <> current_user",
            [f"{self._schema}.{table}"],
        ).fetchone()
        if row is not None:
            self._connection.execute(
                sql.SQL("ALTER TABLE {} OWNER TO {}").format(self._place(name), sql.Identifier(row[0]))
            )

    def _place(self, name: str) -> sql.Composed:
        return sql.SQL("{}.{}").format(sql.Identifier(self._schema), sql.Identifier(name))
