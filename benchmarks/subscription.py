"""Handlers that take part without a worker: registered and attached, so that the relay feeds their streams."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.rounds import say, wait_until
from benchmarks.testbed import Testbed


def register(bed: Testbed, database: str, handlers: Mapping[str, str]) -> None:
    """Do what a worker does when it starts, for handlers and the event names they take."""
    with bed.connect(database) as connection:
        for handler, event_name in handlers.items():
            connection.execute(
                "INSERT INTO outbox.handler (name, event_name) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                [handler, event_name],
            )
        connection.execute("NOTIFY outbox")


def attached(bed: Testbed, database: str, handlers: Mapping[str, str]) -> bool:
    """Whether the main feed serves all of them."""
    with bed.connect(database) as connection:
        query = "SELECT count(*) FROM outbox.handler WHERE attached AND name = ANY(%s)"
        row = connection.execute(query, [list(handlers)]).fetchone()
    return row == (len(handlers),)


def attach(bed: Testbed, database: str, handlers: Mapping[str, str]) -> None:
    """Register handlers and run a relay until it has attached them."""
    say(f"  a relay attaches {len(handlers)} handler{'s' if len(handlers) > 1 else ''}")
    register(bed, database, handlers)
    with bed.relay(database) as relay:
        wait_until(
            lambda: relay.running() and attached(bed, database, handlers), "the relay attaches the handlers", timeout=30
        )
