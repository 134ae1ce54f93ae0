"""Who leads, who stands by, who is refused, and how a relay ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from forking import Programs

from outbox import migrations
from outbox.errors import PrefixTakenError
from outbox.settings import Settings
from relay import Relay


def changed(settings: Settings, **values: Any) -> Settings:
    return Settings(**{**settings.model_dump(), **secrets_of(settings), **values}, _env_file=None)  # type: ignore[arg-type]


def secrets_of(settings: Settings) -> dict[str, Any]:
    return {"database_url": settings.database_url, "redis_url": settings.redis_url}


def test_of_two_relays_one_leads(box: Any, start_relay: Callable[..., Any], wait_for: Callable[..., Any]) -> None:
    both = [start_relay(), start_relay()]
    wait_for(lambda: any("relay.standby" in relay.output() for relay in both), "a standby")
    assert len(box.leaders()) == 1
    seqs = box.add("paid", 20)
    box.register("send", event="paid")
    box.await_seqs(seqs, "paid", "send")


def test_a_standby_takes_over_within_two_seconds_of_a_kill(
    box: Any, start_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    leader = start_relay()
    box.subscribe("send", event="paid")
    standby = start_relay()
    standby.await_line("relay.standby")
    leader.kill()
    killed = time.monotonic()
    seqs = box.add("paid")
    box.await_seqs(seqs, "paid")
    assert time.monotonic() - killed < 2
    standby.await_line("relay.leading")


def test_a_standby_takes_over_at_once_from_a_leader_that_ends(box: Any, run_relay: Callable[..., Any]) -> None:
    with run_relay():
        first = box.await_leader()
        with run_relay() as second:
            del second
            box.subscribe("send", event="paid")
            assert box.leaders() == [first]


def test_a_standby_holds_neither_a_snapshot_nor_a_waiting_lock(
    box: Any, relay: Any, start_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    leader = box.await_leader()
    start_relay().await_line("relay.standby")
    [standby] = [pid for pid in box.relays() if pid != leader]
    asked = "SELECT query_start FROM pg_stat_activity WHERE pid = %s"
    looked: set[Any] = set()
    while len(looked) < 4:
        started = box.one(asked, standby)
        assert box.one("SELECT count(*) FROM pg_locks WHERE pid = %s AND NOT granted", standby) == 0
        idle = box.one(
            "SELECT backend_xid IS NULL AND backend_xmin IS NULL AND xact_start IS NULL FROM pg_stat_activity"
            " WHERE pid = %s AND state = 'idle'",
            standby,
        )
        assert idle is not False
        if idle:
            looked.add(started)


def test_a_leader_that_waits_for_work_holds_no_snapshot(box: Any, relay: Any, wait_for: Callable[..., Any]) -> None:
    wait_for(lambda: box.asleep_until() > 0, "the relay's sleep")
    assert (
        wait_for(
            lambda: box.relays("state = 'idle' AND backend_xmin IS NULL AND backend_xid IS NULL"), "an idle leader"
        )
        == box.leaders()
    )


def test_a_leader_whose_session_is_ended_leads_again(box: Any, relay: Any, wait_for: Callable[..., Any]) -> None:
    box.subscribe("send", event="paid")
    first = box.await_leader()
    box.sql.execute("SELECT pg_terminate_backend(%s)", [first])
    seqs = box.add("paid")
    box.await_seqs(seqs, "paid")
    assert box.leaders() != [first]


def test_a_prefix_of_another_database_is_refused(
    box: Any, relay: Any, settings: Settings, empty_database_url: str
) -> None:
    migrations.apply(empty_database_url)
    with pytest.raises(PrefixTakenError, match=r"prefix 'outbox' belongs to .*choose another OUTBOX_PREFIX"):
        Relay(changed(settings, database_url=empty_database_url)).run()


def test_a_prefix_of_another_schema_is_refused(box: Any, relay: Any, settings: Settings) -> None:
    migrations.apply(settings.libpq_url(), "other")
    with pytest.raises(PrefixTakenError, match=r"belongs to .*/outbox .*serves .*/other"):
        Relay(changed(settings, schema_name="other")).run()


def test_two_schemas_of_one_database_are_relayed_side_by_side_under_their_own_prefixes(
    box: Any, relay: Any, settings: Settings, run_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    migrations.apply(settings.libpq_url(), "other")
    box.subscribe("send", event="paid")
    with run_relay(changed(settings, schema_name="other", prefix="other")):
        box.sql.execute("INSERT INTO other.handler (name, event_name) VALUES ('send', 'paid')")
        box.sql.execute("INSERT INTO other.event (name, payload) VALUES ('paid', '{}'); NOTIFY other")
        wait_for(lambda: box.redis.xlen("other:{paid}:send") == 1, "the other schema's event")
        assert box.entries("paid") == []


def test_sigterm_ends_the_leader_cleanly_and_wakes_nobody_for_long(
    box: Any, start_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    relay = start_relay()
    box.subscribe("send", event="paid")
    box.await_seqs(box.add("paid"), "paid")
    wait_for(lambda: box.asleep_until() > 0, "the relay's sleep")
    asked = time.monotonic()
    assert relay.terminate() == 0
    assert time.monotonic() - asked < 10
    assert box.asleep_until() < 0
    assert box.leaders() == []
    assert "Traceback" not in relay.output()


def test_sigterm_ends_a_standby(box: Any, relay: Any, start_relay: Callable[..., Any]) -> None:
    standby = start_relay()
    standby.await_line("relay.standby")
    assert standby.terminate() == 0


def test_sigterm_ends_a_relay_that_never_reached_its_servers(
    settings: Settings, start_relay: Callable[..., Any]
) -> None:
    nowhere = start_relay(changed(settings, database_url="postgresql://nobody@127.0.0.1:1/nothing"))
    nowhere.await_line("relay.interrupted")
    assert nowhere.terminate() == 0


def test_sigterm_ends_a_relay_that_waits_for_redis(
    box: Any, redis_server: Any, start_relay: Callable[..., Any]
) -> None:
    redis_server.kill()
    relay = start_relay()
    relay.await_line("redis.away")
    assert relay.terminate() == 0
    assert box.asleep_until() < 15


def test_stopping_twice_or_before_the_start_is_fine(settings: Settings, box: Any) -> None:
    relay = Relay(settings)
    relay.stop()
    relay.stop()
    relay.run()
    assert box.leaders() == []


def test_no_password_of_the_database_is_in_any_line(
    box: Any, settings: Settings, start_relay: Callable[..., Any]
) -> None:
    """Neither when all is well nor while the server is away; libpq takes one with # and ? in it."""
    place = settings.libpq_url().rpartition("@")[2]
    away = start_relay(changed(settings, database_url="postgresql://postgres:s3cr#t?%2Fw@127.0.0.1:1/x"))
    well = start_relay(changed(settings, database_url=f"postgresql://postgres:s3cr#t?%2Fw@{place}"))
    for relay, line in [(away, "relay.interrupted"), (well, "relay.leading")]:
        relay.await_line(line)
        assert relay.terminate() == 0
        assert "postgres:***@" in relay.output()
        assert "s3cr" not in relay.output()


def test_no_password_of_redis_is_in_any_line(box: Any, settings: Settings, start_relay: Callable[..., Any]) -> None:
    place = settings.redis_url.get_secret_value().removeprefix("redis://")
    box.redis.acl_setuser("relay", enabled=True, passwords=["+s3cr#t?/w"], keys="*", commands=["+@all"])
    well = start_relay(changed(settings, redis_url=f"redis://relay:s3cr%23t%3F%2Fw@{place}"))
    well.await_line("relay.leading")
    refused = start_relay(changed(settings, redis_url=f"redis://relay:s3crwrong@{place}", prefix="other"))
    refused.await_line("relay.standby")
    well.terminate()
    refused.await_line("redis.away")
    refused.terminate()
    for relay in (well, refused):
        assert "relay:***@" in relay.output()
        assert "s3cr" not in relay.output()


@pytest.mark.parametrize(
    "urls",
    [
        {"database_url": "postgresql://relay:s3cr/t@db/shop"},
        {"redis_url": "redis://relay:s3cr#t@127.0.0.1:1/0"},
        {"redis_url": "redis://relay:s3cr/t@127.0.0.1:1/0"},
    ],
)
def test_an_address_that_cannot_be_read_is_refused_without_showing_it(
    programs: Programs, urls: dict[str, str], settings: Settings
) -> None:
    environment = {
        "OUTBOX_DATABASE_URL": settings.libpq_url(),
        "OUTBOX_REDIS_URL": settings.redis_url.get_secret_value(),
        "PATH": os.environ["PATH"],
    } | {f"OUTBOX_{name.upper()}": url for name, url in urls.items()}
    found = programs.run(["-m", "console.main", "relay"], env=environment)
    assert found.returncode == 2
    assert "percent-encoded" in found.stderr
    assert "s3cr" not in found.stderr + found.stdout
    assert len(found.stderr.splitlines()) == 1


def test_a_password_in_the_query_is_in_no_line(box: Any, settings: Settings, start_relay: Callable[..., Any]) -> None:
    url = settings.libpq_url() + "&password=s3cret&sslpassword=s3cret"
    relay = start_relay(changed(settings, database_url=url))
    relay.await_line("relay.leading")
    relay.terminate()
    assert "s3cret" not in relay.output()
