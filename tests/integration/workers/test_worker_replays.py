"""What was put back, as a worker runs it: beside new events, and as edited copies."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

import workers
from outbox import admin
from outbox.admin import Edit, Outcome, Selection

TAKES = 0.01
"""Seconds of a run: long enough that both kinds wait for the handler, and neither for PostgreSQL or Redis."""


@pytest.mark.parametrize("batch", [None, 2])
def test_retries_and_new_events_begin_in_turn_however_many_of_either_wait(
    outbox: Any, work: Any, until: Any, batch: int | None
) -> None:
    app = workers.App()
    order: list[str] = []

    if batch is None:

        @app.handler("e", name="h", concurrency=1)
        async def one(what: str) -> None:
            order.append(what)
            await asyncio.sleep(TAKES)
    else:

        @app.handler("e", name="h", concurrency=1, batch=batch)
        async def several(events: list[workers.Event]) -> None:
            order.extend(event.payload["what"] for event in events)
            await asyncio.sleep(TAKES)

    outbox.attach("h", "e")
    old = outbox.write("e", *({"what": "old"} for _ in range(60)))
    outbox.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
        " SELECT id, 'h', created_at, 'done', 1 FROM outbox.event"
    )
    admin.pause(outbox.sql, "handler", "h")

    async def scenario(worker: workers.Worker) -> None:
        assert admin.replay(outbox.sql, Selection(handler="h"), outcome=Outcome.DONE).count == len(old)
        outbox.publish("e", *({"what": "new"} for _ in range(60)))
        admin.resume(outbox.sql, "handler", "h")
        await until(lambda: len(order) == 120)
        # Neither has ended before the other has done a good part.
        for first, second in (("old", "new"), ("new", "old")):
            ended = max(place for place, what in enumerate(order) if what == first)
            assert order[:ended].count(second) >= 20

    work(app, scenario)


def test_an_edited_copy_runs_under_its_events_name_at_one_handler_and_names_the_original(
    outbox: Any, work: Any, until: Any
) -> None:
    app = workers.App()
    seen: list[tuple[str, str, Any, str | None]] = []

    @app.handler("e", max_attempts=1)
    async def h(n: int, event: workers.Event) -> None:
        seen.append(("h", event.name, n, event.headers.get("outbox-copy-of")))
        if n < 2:
            raise ValueError("too few")

    @app.handler("e")
    async def other(n: int) -> None:
        seen.append(("other", "e", n, None))

    for name in ("h", "other"):
        outbox.attach(name, "e")

    async def scenario(worker: workers.Worker) -> None:
        (id,) = outbox.publish("e", {"n": 0})
        await until(lambda: outbox.count("dead") == 1 and outbox.count("done") == 1)
        which = Selection(handler="h")
        admin.replay(outbox.sql, which, edit=Edit.parse(["payload.n=1"]))
        await until(lambda: outbox.count("dead") == 2)
        # The copy's letter is one like any other, under the event's name.
        (letter,) = admin.dead_letters(outbox.sql)
        assert (letter.event_name, letter.payload_json, str(letter.event_id) != id) == ("e", '{"n":1}', True)
        admin.replay(outbox.sql, Selection(ids=(UUID(str(letter.event_id)),)), edit=Edit.parse(["payload.n=2"]))
        await until(lambda: outbox.count("done") == 2)
        assert seen[0][2] == 0
        assert ("h", "e", 1, id) in seen
        assert ("h", "e", 2, str(letter.event_id)) in seen
        assert [each for each in seen if each[0] == "other"] == [("other", "e", 0, None)]

    work(app, scenario)
