"""Checks of who is connected to PostgreSQL and how: open transactions, poolers, LISTEN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from psycopg import sql

from console.doctor.finding import Verdict, error, fine, info, seconds, warning, worst
from console.doctor.installation import NAME, Installation
from outbox.database import connect

LONG = 300.0
"""Seconds after which a transaction is long."""

TOO_LONG = 3600.0
"""Seconds after which one that holds events is an error."""

NOTIFIED_WITHIN = 2.0
"""Seconds within which a notification arrives."""


def transactions(installation: Installation) -> Verdict:
    """Whether long ones hold events, or hold vacuum back."""
    rows = installation.rows("transactions", {"long": LONG})
    hidden = any(row["hidden"] for row in rows)
    return worst(
        (transaction(row) for row in rows if not row["hidden"]),
        f"none is open for more than {seconds(LONG)}" + (", of those that this role may see" if hidden else ""),
    )


def transaction(row: Mapping[str, Any]) -> Verdict:
    """Judge one that is long."""
    whose = f"{row['role']} in {row['database']}, process {row['pid']}"
    said = f"open for {seconds(row['age'])}: {row['program'] or 'a session'} of {whose}"
    if row["holds"]:
        return (error if row["age"] >= TOO_LONG else warning)(f"{said}, and nobody sees its events before it ends")
    return warning(said) if row["here"] else info(f"{said}; it holds vacuum back")


def prepared(installation: Installation) -> Verdict:
    """Whether somebody prepared a transaction and left it."""
    rows = installation.rows("prepared", {"long": LONG})
    return worst(map(prepared_one, rows), f"none for more than {seconds(LONG)}")


def prepared_one(row: Mapping[str, Any]) -> Verdict:
    """Judge one that nobody ended."""
    said = f"{row['gid']!r} of {row['role']} in {row['database']} since {seconds(row['age'])}"
    if row["holds"]:
        return error(f"{said}, and nobody sees its events before it ends")
    return warning(said)


def pooler(installation: Installation) -> Verdict:
    """Whether one stands between the relay and PostgreSQL."""
    leader = installation.status().leader
    if leader is not None and not leader.listens:
        return warning("the relay that leads is connected through a pooler: no notification wakes it")
    with connect(installation.settings.libpq_url(direct=True), application_name=NAME) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        if row is not None and row[0] != connection.info.backend_pid:
            return warning("the address that a relay would use is a pooler's")
    return fine("none between relay and PostgreSQL")


def listen(installation: Installation) -> Verdict:
    """Whether a notification that is sent arrives on a connection like the relay's."""
    channel = sql.Identifier(f"{installation.schema}_{uuid4().hex[:12]}")
    settings = installation.settings
    with (
        connect(settings.libpq_url(direct=True), application_name=NAME) as listening,
        connect(settings.libpq_url(), application_name=NAME) as other,
    ):
        listening.execute(sql.SQL("LISTEN {}").format(channel))
        other.execute(sql.SQL("NOTIFY {}").format(channel))
        arrived = list(listening.notifies(timeout=NOTIFIED_WITHIN, stop_after=1))
        # Behind a pooler the session is others' too.
        listening.execute(sql.SQL("UNLISTEN {}").format(channel))
        row = other.execute("SELECT pg_notification_queue_usage()").fetchone()
    return notified(bool(arrived), 0.0 if row is None else row[0])


def notified(arrived: bool, queue: float) -> Verdict:
    """Judge whether a notification came, and how full PostgreSQL's queue of them is, from 0 to 1."""
    if not arrived:
        return warning(
            f"a notification did not arrive within {seconds(NOTIFIED_WITHIN)}: the relay polls every 5 s only"
        )
    if queue >= 0.5:
        remedy = (
            "end the session that listens and stays in a transaction; when the queue is full, commits that notify fail"
        )
        return (error if queue >= 0.9 else warning)(f"the queue of notifications is {queue:.0%} full", remedy)
    return fine("a notification arrives")
