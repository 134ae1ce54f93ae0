"""A batch of a replay reads about a batch, wherever in a large log it is and whatever the planner knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from outbox.admin.replay_batches import DELIVERIES_OF_HANDLERS, IN_ORDER
from outbox.admin.replaying import BATCH
from outbox.admin.selection import LETTERS, Selection
from outbox.admin.statement import statement
from tests.integration.mending.conftest import register

Db = psycopg.Connection[Any]
PILE = 20_000


@pytest.fixture(params=[True, False], ids=["analyzed", "without statistics"])
def pile(request: pytest.FixtureRequest, db: Db) -> Db:
    """Events over three days, done at one handler, dead at another."""
    register(db, "done", "dead")
    db.execute(
        "INSERT INTO outbox.event (name, payload, created_at)"
        " SELECT 'order', '{}', now() + n %% 3 * interval '1 day' + n * interval '1 ms'"
        "   FROM generate_series(1, %s) AS n",
        [PILE],
    )
    db.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, updated_at)"
        " SELECT id, h, created_at, h, 1, now() - interval '1 hour'"
        "   FROM outbox.event, unnest('{done,dead}'::text[]) AS h"
    )
    db.execute(
        "INSERT INTO outbox.dead_letter (event_id, handler, event_created_at, name, payload, attempts, error, died_at)"
        " SELECT id, 'dead', created_at, name, payload, 1, 'boom', created_at - interval '7 days' FROM outbox.event"
    )
    if request.param:
        db.execute("ANALYZE outbox.event, outbox.delivery, outbox.dead_letter")
    return db


@pytest.mark.parametrize("source", ["choose_deliveries", "choose_letters"])
def test_a_batch_in_the_middle_reads_about_a_batch(pile: Db, source: str) -> None:
    deliveries = source == "choose_deliveries"
    columns, handler = (DELIVERIES_OF_HANDLERS, "done") if deliveries else (LETTERS, "dead")
    selected, asked = Selection(handler=handler).conditions(columns, "outbox")
    order = "id" if deliveries else "created_at, id"
    (place,) = pile.execute(
        f"SELECT id, created_at FROM outbox.event ORDER BY {order} OFFSET {PILE // 2} LIMIT 1".encode()
    )
    asked |= {
        "began": "infinity", "handler": handler, "states": ["done"], "missed": False, "batch": BATCH,
        "place_id": place[0], "place_handler": handler,
    }  # fmt: skip
    (moved,) = pile.execute("SELECT %s - %s::interval", [place[1], "0" if deliveries else "7 days"])
    asked["place_at"] = moved[0]
    if deliveries:
        pile.execute(IN_ORDER.replace(b"true", b"false"))
    query = b"EXPLAIN (ANALYZE, FORMAT JSON) " + statement(source, "outbox", selected)
    (plan,) = pile.execute(query, asked)
    assert plan[0][0]["Plan"]["Actual Rows"] == BATCH
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in scans(plan[0][0]["Plan"])) < 5 * BATCH


def scans(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes of a plan that read tables, with all that they looked at."""
    if "Relation Name" in node:
        yield {**node, "Actual Rows": node["Actual Rows"] + node.get("Rows Removed by Filter", 0)}
    for child in node.get("Plans", []):
        yield from scans(child)
