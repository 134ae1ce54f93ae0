"""An event that was done comes back from Redis when nobody knows of it any more: upkeep has dropped its day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from outbox.entry import to_microseconds
from outbox.names import stream_key
from relay import lead, upkeep


@pytest.mark.slow
def test_an_event_that_redis_brings_back_after_its_partition_was_dropped_is_refused_by_every_handler(
    working: Any,
) -> None:
    cast = working
    relay = cast.relay()
    cast.worker()
    cast.wait_for(lambda: cast.one("SELECT count(*) FROM outbox.handler") == 4, "the handlers")
    ordered = cast.order(1)
    cast.check_effects(ordered)
    event_id, payload, at = cast.sql.execute(
        "SELECT id::text, payload::text, created_at FROM outbox.event WHERE name = 'ordered'"
    ).fetchone()
    later = datetime.now(UTC) + timedelta(days=10)
    keeper = lead.connect(cast.settings.libpq_url(), "outbox", role="upkeep")

    def dropped() -> bool:
        """Once the relay's sweep has seen that all is done."""
        upkeep.run(keeper, "outbox", timedelta(days=7), now=later)
        return not cast.one("SELECT (SELECT count(*) FROM outbox.event) + (SELECT count(*) FROM outbox.delivery)")

    try:
        cast.wait_for(dropped, "the day to be dropped")
    finally:
        keeper.close()
    # It would take the entry for another relay's.
    relay.kill()
    fields = {"id": event_id, "name": "ordered", "key": "", "payload": payload, "headers": ""}
    key = stream_key(cast.settings.prefix, "ordered")
    cast.redis.xadd(key, fields | {"at": str(to_microseconds(at))})
    cast.wait_for(
        lambda: (
            cast.sql.execute("SELECT handler FROM outbox.dead_letter ORDER BY 1").fetchall()
            == [("book",), ("charge",), ("notify",)]
        ),
        "the dead letters",
    )
    errors = cast.sql.execute("SELECT DISTINCT error FROM outbox.dead_letter").fetchall()
    assert len(errors) == 1
    assert "redelivered after its retention" in errors[0][0]
    cast.wait_for(lambda: all(not group["pending"] for group in cast.redis.xinfo_groups(key)), "the acknowledgements")
    assert cast.effects.read_text().split() == ordered
    assert cast.one("SELECT count(*) FROM effect WHERE handler IN ('book', 'charge')") == 2
