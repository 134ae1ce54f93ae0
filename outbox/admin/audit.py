"""Who changed something by hand, and why: a row of the table `audit` for each change, in the change's transaction."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Mapping
from typing import Any

import psycopg

from outbox.names import check_schema

Cursor = psycopg.Cursor[Any]


def current_actor() -> str:
    """Who is at the keyboard: user@host.

    >>> current_actor()
    'ann@desk'
    """
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def note(
    cursor: Cursor,
    schema: str,
    action: str,
    detail: Mapping[str, Any],
    *,
    actor: str | None,
    reason: str | None,
) -> None:
    """Write the audit row of an action; `actor` is whoever is at the keyboard unless somebody else is named."""
    cursor.execute(
        f"INSERT INTO {check_schema(schema)}.audit (actor, action, reason, detail) VALUES (%s, %s, %s, %s)".encode(),
        [actor or current_actor(), action, reason, json.dumps(detail)],
    )
