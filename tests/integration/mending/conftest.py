"""Commands in this process, and rows as the relay and the workers write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from console import main

Db = psycopg.Connection[Any]


class Result:
    """What a command did."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err

    @property
    def said(self) -> str:
        """The last line on stdout; programs in other threads may log there."""
        return self.out.splitlines()[-1]

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def db(database_url: str) -> Iterator[Db]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def outbox(
    database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Runs a command on this test's database; Redis is away unless `OUTBOX_REDIS_URL` is set."""
    monkeypatch.setenv("OUTBOX_DATABASE_URL", database_url)
    monkeypatch.setenv("OUTBOX_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        return Result(main.run(arguments), *capsys.readouterr())

    return run


def register(db: Db, *handlers: str, event: str = "order") -> None:
    """Handlers that a worker announced and the relay attached."""
    db.execute(
        "INSERT INTO outbox.handler (name, event_name, attached, done_tick, done_seq)"
        " SELECT unnest(%s::text[]), %s, true, 0, 0",
        [list(handlers), event],
    )


def add(db: Db, count: int = 1, *, event: str = "order", key: str | None = None, payload: str = "{}") -> list[str]:
    """Events; their ids, in the order of their seq."""
    rows = db.execute(
        "INSERT INTO outbox.event (name, key, payload) SELECT %s, %s, %s::json FROM generate_series(1, %s)"
        " RETURNING id::text",
        [event, key, payload, count],
    )
    return [row[0] for row in rows]


def deliver(db: Db, handler: str, state: str, *ids: str, lease: str | None = None, error: str | None = None) -> None:
    """What came of events at a handler; a `lease` is an interval until it ends."""
    db.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at, lease, error)"
        " SELECT id, %(handler)s, created_at, %(state)s, 1,"
        "   CASE WHEN %(state)s = 'retrying' THEN now() + coalesce(%(lease)s, '0')::interval END,"
        "   CASE WHEN %(lease)s::text IS NOT NULL THEN gen_random_uuid() END, %(error)s"
        "  FROM outbox.event WHERE id = ANY(%(ids)s::uuid[])",
        {"handler": handler, "state": state, "ids": list(ids), "lease": lease, "error": error},
    )


def bury(db: Db, handler: str, *ids: str, error: str = "boom") -> None:
    """Events whose delivery to a handler failed for good."""
    deliver(db, handler, "dead", *ids, error=error)
    db.execute(
        "INSERT INTO outbox.dead_letter"
        " (event_id, handler, event_created_at, name, key, payload, headers, attempts, error)"
        " SELECT id, %s, created_at, name, key, payload, headers, 10, %s FROM outbox.event WHERE id = ANY(%s::uuid[])",
        [handler, error, list(ids)],
    )


def states(db: Db, event_id: str) -> dict[str, str]:
    """Where an event stands, by handler."""
    rows = db.execute("SELECT handler, state FROM outbox.delivery WHERE event_id = %s", [event_id])
    return dict(rows.fetchall())


def audits(db: Db) -> list[tuple[str, str | None, Any]]:
    """Action, reason and detail of every audit row."""
    return db.execute("SELECT action, reason, detail FROM outbox.audit ORDER BY id").fetchall()
