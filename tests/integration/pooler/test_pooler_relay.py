"""A relay whose LISTEN is granted and which is told of nothing."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg
import pytest
import redis as redis_client
from pydantic import SecretStr
from waiting import wait_for

from outbox import admin
from outbox.settings import Settings
from relay import Relay, monitoring, pacing


def test_a_relay_whose_notifications_are_swallowed_finds_events_by_polling(
    settings: Settings, deaf: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    redis = redis_client.Redis.from_url(settings.redis_url.get_secret_value())
    relay = Relay(settings.model_copy(update={"relay_database_url": SecretStr(deaf.url)}))
    thread = threading.Thread(target=relay.run, daemon=True)
    thread.start()

    def holds(condition: str) -> bool:
        return sql.execute(f"SELECT {condition}".encode()).fetchone() == (True,)

    with psycopg.connect(settings.libpq_url(), autocommit=True) as sql:
        sql.execute("INSERT INTO outbox.handler (name, event_name) VALUES ('send', 'paid')")
        wait_for(lambda: holds("attached FROM outbox.handler"))
        asleep = (
            "coalesce(pg_sequence_last_value('outbox.asleep'::regclass), 0) > extract(epoch FROM clock_timestamp())"
        )
        for count in (1, 2):
            wait_for(lambda: holds(asleep))
            swallowed = deaf.swallowed
            added = time.monotonic()
            sql.execute("INSERT INTO outbox.event (name, payload) VALUES ('paid', '{}')")
            wait_for(lambda count=count: redis.xlen("outbox:{paid}") == count)  # type: ignore[misc]
            assert time.monotonic() - added < 2 * pacing.SAFETY_POLL
            assert deaf.swallowed > swallowed
        leader = admin.status(settings).leader
        assert leader is not None
        assert not leader.listens
        assert relay.measures.leading
        assert "OUTBOX_RELAY_DATABASE_URL" in str(monitoring.readiness(relay, settings)()["listen"])
        gauges = {
            each.name: each.samples[0].value for each in monitoring.Own(relay.measures, {}).collect() if each.samples
        }
        assert (gauges["outbox_relay_leader"], gauges["outbox_relay_listening"]) == (1, 0)
    relay.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert "OUTBOX_RELAY_DATABASE_URL" in capsys.readouterr().out
