"""What a relay tells on its port: of its own work and of the installation, and whether it is ready."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from outbox import admin
from outbox.admin import Outcome, Selection
from outbox.names import stream_key
from outbox.settings import Settings
from relay import installation, monitoring
from relay.service import Relay


def get(port: int, path: str) -> tuple[int, str]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


class Metrics:
    """One scrape; with `["name", label=value]` a sample's value."""

    def __init__(self, port: int) -> None:
        status, text = get(port, "/metrics")
        assert status == 200
        self.samples = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def of(self, name: str, **labels: str) -> float | None:
        return self.samples.get((name, *sorted(labels.items())))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept, so that each look sees what is."""
    monkeypatch.setattr(installation, "KEEP", 0.0)


@contextmanager
def watched(relay: Relay, settings: Settings) -> Iterator[int]:
    with monitoring.serve(relay, settings, 0) as port:
        yield port


def test_a_relay_tells_of_its_work_and_of_the_installation(
    relay: Any, box: Any, settings: Settings, wait_for: Callable[..., Any], impatient: None
) -> None:
    box.subscribe("send", "print", event="paid")
    began = time.monotonic()
    box.add("paid", 3)
    box.await_seqs([1, 2, 3], "paid")
    box.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
        " SELECT id, 'print', created_at, 'done', 1 FROM outbox.event"
    )
    assert admin.replay(box.sql, Selection(handler="print"), outcome=Outcome.DONE).count == 3
    box.read("paid", "send", count=2)
    with watched(relay.relay, settings) as port:
        found = wait_for(lambda: (m := Metrics(port)).of("outbox_relay_publish_seconds_count") and m, "a batch")
        took = time.monotonic() - began
    stream, send = stream_key("outbox", "paid"), {"handler": "send", "event_name": "paid"}
    assert found.of("outbox_relay_leader") == found.of("outbox_relay_listening") == 1
    assert found.of("outbox_relay_published_events_total", event_name="paid") == 3
    assert found.of("outbox_relay_batch_events_sum") == 3
    assert 0 < (found.of("outbox_relay_publish_seconds_sum") or 0) < took
    assert found.of("outbox_backlog_events") == found.of("outbox_backlog_age_seconds") == 0
    assert found.of("outbox_handler_lag_events", **send) == 3
    assert found.of("outbox_handler_oldest_eligible_age_seconds", **send) > 0
    assert found.of("outbox_handler_attached", **send) == 1
    assert found.of("outbox_stream_length", stream=stream) == 3
    assert found.of("outbox_group_pending", stream=stream, handler="send") == 2
    assert found.of("outbox_actions_total", action="replay") == 1
    assert found.of("outbox_replayed_deliveries_total") == 3
    assert found.of("outbox_state_read", server="redis") == found.of("outbox_state_read", server="postgresql") == 1
    assert found.of("process_cpu_seconds_total") > 0


def test_what_a_catch_up_feed_published_is_counted_by_handler(
    relay: Any, box: Any, settings: Settings, wait_for: Callable[..., Any]
) -> None:
    box.add("paid", 4)
    box.register("send", event="paid")
    box.await_attached("send")
    assert relay.relay.measures.fed == {"send": 4}


def test_retrying_dead_and_waiting_are_counted(
    relay: Any, box: Any, settings: Settings, wait_for: Callable[..., Any], impatient: None
) -> None:
    box.subscribe("send", event="paid")
    box.add("paid", 2)
    box.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " SELECT id, 'send', created_at, 'retrying', 1, now() FROM outbox.event WHERE seq = 1"
    )
    box.sql.execute(
        "INSERT INTO outbox.dead_letter (event_id, handler, event_created_at, name, payload, attempts, error)"
        " SELECT id, 'send', created_at, name, payload, 1, 'no' FROM outbox.event WHERE seq = 2"
    )
    with watched(relay.relay, settings) as port:
        found = Metrics(port)
    labels = {"handler": "send", "event_name": "paid"}
    assert found.of("outbox_handler_retrying", **labels) == found.of("outbox_handler_dead", **labels) == 1
    assert found.of("outbox_handler_paused", **labels) == 0
    assert found.of("outbox_handler_seen_age_seconds", **labels) is not None


def test_a_backlog_and_its_age_show_while_nobody_leads(box: Any, settings: Settings) -> None:
    box.sql.execute("INSERT INTO outbox.event (name, payload, created_at) VALUES ('a', '{}', now() - interval '1 h')")
    with watched(Relay(settings), settings) as port:
        found = Metrics(port)
    assert found.of("outbox_relay_leader") == 0
    assert found.of("outbox_backlog_events") == 1
    assert found.of("outbox_oldest_eligible_age_seconds") == found.of("outbox_backlog_age_seconds") >= 3600


def test_the_lag_of_a_group_is_left_out_when_redis_does_not_know_it(
    relay: Any, box: Any, settings: Settings, impatient: None
) -> None:
    box.subscribe("send", event="paid")
    box.add("paid", 3)
    box.await_seqs([1, 2, 3], "paid")
    stream = stream_key("outbox", "paid")
    [group] = box.redis.xinfo_groups(stream)
    labels = {"stream": stream, "handler": "send"}
    with watched(relay.relay, settings) as port:
        found = Metrics(port)
        # Redis 6.2 never knows.
        assert found.of("outbox_group_lag", **labels) == group.get("lag")
        # A hole in what the group was not given.
        middle = box.redis.xrange(stream)[1][0]
        box.redis.xdel(stream, middle)
        assert box.redis.xinfo_groups(stream)[0].get("lag") is None
        assert Metrics(port).of("outbox_group_lag", **labels) is None


def test_what_a_server_that_is_away_would_tell_is_left_out(
    box: Any, settings: Settings, redis_server: Any, impatient: None
) -> None:
    with watched(Relay(settings), settings) as port:
        assert Metrics(port).of("outbox_state_read", server="redis") == 1
        redis_server.kill()
        found = Metrics(port)
        status, text = get(port, "/readyz")
    assert found.of("outbox_state_read", server="redis") == 0
    assert found.of("outbox_backlog_events") == 0
    assert (status, "redis: ConnectionError" in text, "postgresql: ok" in text) == (503, True, True)


def test_a_leader_is_ready_when_servers_answer_the_schema_fits_and_it_listens(
    relay: Any, box: Any, settings: Settings, wait_for: Callable[..., Any]
) -> None:
    with watched(relay.relay, settings) as port:
        wait_for(lambda: get(port, "/readyz")[0] == 200, "readiness")
        assert get(port, "/readyz")[1] == "postgresql: ok\nschema: ok\nredis: ok\nrelay: ok\nlead: ok\nlisten: ok\n"
        assert get(port, "/livez") == (200, "loop: ok\n")


def test_a_leader_that_does_not_listen_is_not_ready(box: Any, settings: Settings) -> None:
    idle = Relay(settings)
    idle.measures.leading = True
    with watched(idle, settings) as port:
        status, text = get(port, "/readyz")
    assert (status, "listen: does not LISTEN yet" in text) == (503, True)


def test_a_standby_is_ready_and_says_that_it_does_not_lead(
    relay: Any, run_relay: Callable[..., Any], settings: Settings, wait_for: Callable[..., Any]
) -> None:
    with run_relay() as standby, watched(standby.relay, settings) as port:
        assert get(port, "/readyz")[0] == 200
        assert Metrics(port).of("outbox_relay_leader") == 0


def test_a_schema_of_an_older_release_is_not_ready(box: Any, settings: Settings) -> None:
    with watched(Relay(settings), settings) as port:
        box.sql.execute("DELETE FROM outbox.migration WHERE version > 1")
        status, text = get(port, "/readyz")
    assert (status, "schema: of an older release: run `outbox migrate`" in text) == (503, True)


def test_the_pulse_of_a_relay_beats_while_it_leads_and_while_it_stands_by(
    relay: Any, run_relay: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    with run_relay() as standby:
        for each in (relay, standby):
            pulse = each.relay.pulse
            before = pulse._beaten
            wait_for(lambda pulse=pulse, before=before: pulse._beaten > before, "a beat")


def test_a_wake_up_by_a_writer_is_told_from_one_by_the_clock(
    relay: Any, box: Any, wait_for: Callable[..., Any]
) -> None:
    box.subscribe("send", event="paid")
    wait_for(lambda: box.asleep_until() > 0, "the relay being asleep")
    wait_for(lambda: relay.relay.wakeups["timer"], "a rest that ended by the clock")
    before = relay.relay.wakeups["notify"]
    box.add("paid")
    wait_for(lambda: relay.relay.wakeups["notify"] > before, "a wake-up by NOTIFY")


def test_the_program_serves_its_port_and_says_which_it_took(
    start_relay: Callable[..., Any], wait_for: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOX_METRICS_PORT", "0")
    process = start_relay()
    process.await_line("monitor.listening")
    [port] = re.findall(r"event=monitor\.listening.* port=(\d+)", process.output())
    wait_for(lambda: Metrics(int(port)).of("outbox_relay_leader") == 1, "the lead")
    assert get(int(port), "/livez")[0] == 200
    monkeypatch.setenv("OUTBOX_METRICS_PORT", port)
    other = start_relay()
    assert other.popen.wait(60) == 1
    assert "choose another --metrics-host or --metrics-port" in other.output()
    assert "Traceback" not in other.output()
    assert process.terminate() == 0
