"""Leadership: one relay per schema publishes, held by a session advisory lock.

The lock lives and dies with the connection that every tick, flag and bookmark is written on, so a relay that lost it
cannot write any more. Standbys ask again and again instead of waiting: a waiting lock would hold back vacuum in the
whole database.
"""

from __future__ import annotations

import psycopg
import structlog
from psycopg import sql

from outbox.errors import LeadershipLostError, SchemaError, UnusableError
from outbox.migrations.script import latest
from outbox.names import lock_id

log = structlog.get_logger()

RETRY_AFTER = 0.5
"""Seconds between a standby's attempts."""

_SESSION = {
    # A leader that is stopped or cut off loses the lock when the server drops its session.
    "idle_session_timeout": "10s",
    "idle_in_transaction_session_timeout": "10s",
    "tcp_keepalives_idle": "2",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",
    # Parallel workers and JIT cost more than they bring here.
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "work_mem": "64MB",
    "timezone": "UTC",
}

_PLANS = {
    # Polls and small batches are planned once: planning took longer than running. Without sequential scans no plan made
    # for unknown values can be a full scan. (Cursors are always planned for their values.)
    "relay": {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"},
    "sweep": {"plan_cache_mode": "force_custom_plan"},
    # Upkeep asks for what is rarely there; estimates would have it read whole partitions.
    "upkeep": {"plan_cache_mode": "force_custom_plan", "enable_seqscan": "off"},
}


def connect(url: str, schema: str, *, role: str = "relay") -> psycopg.Connection:
    """A direct connection to the primary, with the session settings a relay needs.

    Raises `UnusableError` on a standby server, `SchemaError` without our tables, `psycopg.OperationalError` when
    the server cannot be reached.
    """
    connection = psycopg.connect(
        url,
        autocommit=True,
        connect_timeout=5,
        application_name=f"outbox {role} {schema}",
        keepalives_idle=2,
        keepalives_interval=2,
        keepalives_count=3,
        tcp_user_timeout=10_000,
    )
    try:
        for name, value in (_SESSION | _PLANS[role]).items():
            connection.execute("SELECT set_config(%s, %s, false)", [name, value])
        row = connection.execute(
            "SELECT pg_is_in_recovery(), to_regclass(%s), pg_backend_pid()", [f"{schema}.relay"]
        ).fetchone()
        assert row is not None
        if role == "relay" and row[2] != connection.info.backend_pid:
            # Poolers tell clients the number of a server process of their own making.
            log.warning("relay.pooled", advice="set OUTBOX_RELAY_DATABASE_URL to the server: its session is the lead")
        if row[0]:
            raise UnusableError(
                "this PostgreSQL server is a standby and cannot be written; "
                "point OUTBOX_RELAY_DATABASE_URL at the primary"
            )
        if row[1] is None:
            raise SchemaError(f"there is no outbox in schema {schema!r}: run `outbox migrate` first")
        version = connection.execute(f"SELECT coalesce(max(version), 0) FROM {schema}.migration".encode()).fetchone()
        if version is None or version[0] < latest():
            raise SchemaError(f"the outbox in schema {schema!r} is of an older release: run `outbox migrate`")
    except BaseException:
        connection.close()
        raise
    return connection


def try_to_lead(connection: psycopg.Connection, schema: str) -> bool:
    """Take the leader's lock if nobody holds it."""
    row = connection.execute("SELECT pg_try_advisory_lock(%s)", [lock_id("relay", schema)]).fetchone()
    return row is not None and bool(row[0])


def announce(connection: psycopg.Connection, schema: str, leader: str) -> bool:
    """Say who leads, and which session it takes for its own. False when that is another one, behind a pooler: what the
    session LISTENs for may never be told."""
    row = connection.execute(
        f"UPDATE {schema}.relay SET leader = %s, backend_pid = %s, heartbeat = clock_timestamp()"
        " RETURNING backend_pid = pg_backend_pid()".encode(),
        [leader, connection.info.backend_pid],
    ).fetchone()
    return row is not None and bool(row[0])


def stop_leading(connection: psycopg.Connection, schema: str) -> None:
    """Give the leader's lock back."""
    connection.execute("SELECT pg_advisory_unlock(%s)", [lock_id("relay", schema)])


def check(connection: psycopg.Connection, schema: str) -> None:
    """Raise `LeadershipLostError` unless this very session still holds the lock. Keeps the session from being idle."""
    found = connection.execute(
        sql.SQL(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted"
            " AND (classid::bigint << 32 | objid::bigint) = %s)"
        ),
        [lock_id("relay", schema)],
    ).fetchone()
    if found is None or not found[0]:
        raise LeadershipLostError("another relay leads now")
