"""Events that wait: written by many small transactions, as an application would have left them."""

from __future__ import annotations

from importlib.resources import files

import psycopg

ROWS_PER_TRANSACTION = 1000
SMALLEST_PAYLOAD = 90


def event_name(number: int) -> str:
    """The name of the events of one of several streams."""
    return f"bench{number}"


def write(connection: psycopg.Connection, table: str, *, events: int, names: int = 1, payload: int = 100) -> None:
    """Write `events` rows with payloads of `payload` bytes into `table`, their names in turn, and gather statistics.

    Raises ValueError when `payload` is less than the 90 bytes that the fixed part takes.
    """
    if payload < SMALLEST_PAYLOAD:
        raise ValueError(f"the payload takes at least {SMALLEST_PAYLOAD} bytes")
    script = (files(__package__) / "waiting.sql").read_text()
    for name, value in {"table": table, "names": names, "payload": payload}.items():
        script = script.replace(f"{{{name}}}", str(value))
    connection.execute("SET synchronous_commit = off")
    for first in range(0, events, ROWS_PER_TRANSACTION):
        last = min(first + ROWS_PER_TRANSACTION, events) - 1
        connection.execute(script.replace("{first}", str(first)).replace("{last}", str(last)))
    connection.execute("RESET synchronous_commit")
    connection.execute(f"ANALYZE {table}")
