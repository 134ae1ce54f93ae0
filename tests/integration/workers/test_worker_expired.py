"""Events that are redelivered after their outcomes went with a partition are refused, loudly, and never run twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

import workers
from outbox.entry import to_microseconds
from outbox.settings import Settings

pytestmark = pytest.mark.oldest

NOW = datetime.now(UTC)
OLD = to_microseconds(NOW - timedelta(days=30))


def test_an_event_older_than_what_is_retained_becomes_a_dead_letter_instead_of_running_again(
    outbox: Any, work: Any, until: Any
) -> None:
    app, seen = workers.App(), []

    @app.handler("signed_up")
    async def welcome(n: int) -> None:
        seen.append(n)

    outbox.attach("welcome", "signed_up")
    outbox.sql.execute("UPDATE outbox.relay SET retained_from = %s", [NOW - timedelta(days=7)])
    old = ("01980000-0000-7000-8000-000000000001", 1, OLD, '{"n":  1}')
    foreign = ("01980000-0000-7000-8000-000000000002", 2, OLD, '{"n": NaN}')
    finished = ("01980000-0000-7000-8000-000000000003", 3, OLD, '{"n": 3}')
    outbox.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
        " VALUES (%s, 'welcome', 'epoch'::timestamptz + %s * interval '1 microsecond', 'done', 1)",
        [finished[0], OLD],
    )
    new = outbox.write("signed_up", {"n": 4})

    async def scenario(worker: workers.Worker) -> None:
        outbox.push("signed_up", [old, foreign, finished])
        outbox.push("signed_up", new)
        outbox.push("signed_up", [old])
        await until(lambda: outbox.count("done") == 2 and outbox.count("dead") == 2)
        await until(lambda: outbox.pending("signed_up", "welcome") == 0)

    work(app, scenario)
    assert seen == [4]
    letters = outbox.sql.execute(
        "SELECT event_id::text, handler, name, payload::text, attempts FROM outbox.dead_letter ORDER BY 1"
    ).fetchall()
    assert letters == [
        (old[0], "welcome", "signed_up", '{"n":  1}', 0),
        (foreign[0], "welcome", "signed_up", '"{\\"n\\": NaN}"', 0),
    ]


def test_its_dead_letter_can_be_replayed_and_a_further_redelivery_changes_nothing(
    outbox: Any, work: Any, until: Any
) -> None:
    from outbox import admin

    app, seen = workers.App(), []

    @app.handler("signed_up")
    async def welcome(n: int) -> None:
        seen.append(n)

    outbox.attach("welcome", "signed_up")
    outbox.sql.execute("UPDATE outbox.relay SET retained_from = %s", [NOW - timedelta(days=7)])
    old = ("01980000-0000-7000-8000-000000000001", 1, OLD, '{"n": 1}')

    async def scenario(worker: workers.Worker) -> None:
        outbox.push("signed_up", [old])
        await until(lambda: outbox.count("dead") == 1)
        assert admin.replay(outbox.settings, admin.Selection(handler="welcome")).count == 1
        await until(lambda: outbox.count("done") == 1)
        outbox.push("signed_up", [old])
        await until(lambda: outbox.pending("signed_up", "welcome") == 0)

    work(app, scenario)
    assert seen == [1]
    assert outbox.one("SELECT count(*) FROM outbox.dead_letter") == 0


def test_a_refusal_whose_row_another_transaction_holds_delays_no_other_event(
    outbox: Any, settings: Settings, work: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, seen = workers.App(), []
    monkeypatch.setattr("workers.delivery.REFUSED_AGAIN", 0.3)

    @app.handler("signed_up")
    async def welcome(n: int) -> None:
        seen.append(n)

    outbox.attach("welcome", "signed_up")
    outbox.sql.execute("UPDATE outbox.relay SET retained_from = %s", [NOW - timedelta(days=7)])
    held, free = ((f"01980000-0000-7000-8000-00000000000{n}", n, OLD, f'{{"n": {n}}}') for n in (1, 2))

    async def scenario(worker: workers.Worker) -> None:
        with psycopg.connect(settings.libpq_url()) as holder:
            holder.execute(
                "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
                " VALUES (%s, 'welcome', 'epoch'::timestamptz + %s * interval '1 microsecond', 'done', 1)",
                [held[0], OLD],
            )
            outbox.push("signed_up", [held, free])
            await until(lambda: outbox.count("dead") == 1)
            outbox.publish("signed_up", {"n": 3})
            await until(lambda: outbox.count("done") == 1)
            holder.rollback()
        await until(lambda: outbox.count("dead") == 2 and outbox.pending("signed_up", "welcome") == 0)

    work(app, scenario)
    assert seen == [3]
