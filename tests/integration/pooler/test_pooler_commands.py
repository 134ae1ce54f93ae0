"""What the commands do to the database, behind a transaction pooler."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from outbox import admin, migrations
from outbox.settings import Settings

LETTERS = 60


def test_the_schema_is_made_and_checked(empty_database_url: str, open_pooler: Callable[[str], str]) -> None:
    url = open_pooler(empty_database_url)
    assert migrations.apply(url)
    assert not migrations.apply(url)
    assert migrations.check(url).ok


def test_letters_are_listed_and_put_back_in_many_batches(pooled: Settings) -> None:
    with psycopg.connect(pooled.libpq_url(direct=True), autocommit=True) as sql:
        sql.execute("INSERT INTO outbox.handler (name, event_name) VALUES ('send', 'paid')")
        sql.execute(
            "WITH event AS (INSERT INTO outbox.event (name, payload) SELECT 'paid', '{}' FROM generate_series(1, %s)"
            "                 RETURNING id, seq, name, payload, created_at),"
            " delivery AS (INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
            "              SELECT id, 'send', created_at, 'dead', 1 FROM event)"
            " INSERT INTO outbox.dead_letter (event_id, handler, event_created_at, name, payload, attempts, error)"
            " SELECT id, 'send', created_at, name, payload, 1, 'no' FROM event",
            [LETTERS],
        )
    assert len(admin.dead_letters(pooled, limit=2 * LETTERS)) == LETTERS
    assert len(admin.events(pooled, admin.Selection(name="paid"), limit=2 * LETTERS)) == LETTERS
    batches: list[int] = []
    # At 50 a second there are five in a batch.
    done = admin.replay(
        pooled, admin.Selection(), rate=50, progress=lambda done, _: batches.append(done), sleep=lambda _: None
    )
    assert done.count == LETTERS
    assert len(batches) == LETTERS / 5
    [handler] = admin.status(pooled).handlers
    assert (handler.retrying.value, handler.dead.value) == (LETTERS, 0)
