"""The port with metrics and health: what it answers, and that it answers whatever else stands still."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from outbox import families
from outbox.errors import UnusableError
from outbox.fresh import Fresh
from outbox.health import STUCK_AFTER, Pulse, Servers
from outbox.monitor import page, served
from outbox.settings import Settings
from outbox.tally import EVENTS, SECONDS, Histogram


class Some:
    """A collector with one of each kind."""

    def collect(self) -> Iterator[Metric]:
        took = Histogram(SECONDS)
        took.observe(0.003)
        yield families.gauge("some_age", "An age.", 1.5)
        yield families.counter("some_events", "Events.", {("a",): 2}, ("name",))
        yield families.histogram("some_seconds", "Times.", {(): took})


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    with closing(HTTPConnection(host, port, timeout=30)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


@pytest.fixture
def port() -> Iterator[int]:
    registry = CollectorRegistry()
    registry.register(Some())
    with served(
        "127.0.0.1", 0, registry, live=lambda: {"loop": None}, ready=lambda: {"redis": "away", "schema": None}
    ) as found:
        yield found


def test_metrics_can_be_parsed_by_prometheus(port: int) -> None:
    status, text = get(port, "/metrics?x=1")
    assert status == 200
    found = {family.name: family for family in text_string_to_metric_families(text)}
    assert found["some_age"].samples[0].value == 1.5
    assert [(sample.labels, sample.value) for sample in found["some_events"].samples] == [({"name": "a"}, 2)]
    buckets = [sample for sample in found["some_seconds"].samples if sample.name == "some_seconds_bucket"]
    assert [sample.value for sample in buckets] == [0, 0, *[1] * (len(SECONDS) - 1)]


def test_health_is_200_when_all_is_fine_and_else_503_with_what_is_wrong(port: int) -> None:
    assert get(port, "/livez") == (200, "loop: ok\n")
    assert get(port, "/readyz") == (503, "redis: away\nschema: ok\n")
    assert page({}) == (200, "")


def test_another_path_says_which_there_are(port: int) -> None:
    status, text = get(port, "/")
    assert status == 404
    assert "/livez" in text


def test_a_client_that_says_nothing_holds_up_no_other(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)):
        assert get(port, "/livez")[0] == 200


def test_a_port_that_is_taken_is_refused_with_advice(port: int) -> None:
    with (
        pytest.raises(UnusableError, match=f"port {port}.*choose another"),
        served("127.0.0.1", port, CollectorRegistry(), live=dict, ready=dict),
    ):
        pass


def test_nothing_is_served_any_more_at_the_end() -> None:
    with served("127.0.0.1", 0, CollectorRegistry(), live=dict, ready=dict) as port:
        assert get(port, "/livez")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        get(port, "/livez")


def test_it_listens_on_ipv6_too() -> None:
    with served("::1", 0, CollectorRegistry(), live=dict, ready=dict) as port:
        assert get(port, "/livez", "::1")[0] == 200


def test_a_loop_that_does_not_turn_for_long_is_stuck_unless_it_rests() -> None:
    pulse = Pulse()
    pulse.beat()
    later = pulse._beaten + STUCK_AFTER
    assert pulse.findings(later) == {"loop": None}
    assert pulse.findings(later + 1) == {"loop": f"has not turned for {STUCK_AFTER + 1:.0f} s"}
    pulse.rest()
    assert pulse.findings(later + 1) == {"loop": None}


def test_who_asks_at_once_shares_one_reading() -> None:
    begun, go = threading.Event(), threading.Event()
    readings = []

    def read() -> int:
        readings.append(1)
        begun.set()
        go.wait()
        return 7

    fresh = Fresh(read, keep=60, within=60)
    got: list[int | None] = []
    askers = [threading.Thread(target=lambda: got.append(fresh.get())) for _ in range(3)]
    for asker in askers:
        asker.start()
    begun.wait()
    go.set()
    for asker in askers:
        asker.join()
    assert (got, fresh.get(), len(readings)) == ([7] * 3, 7, 1)


def test_what_is_old_is_read_anew() -> None:
    numbers = iter(range(9))
    fresh = Fresh(lambda: next(numbers), keep=0, within=60)
    fresh.get()
    fresh.get()
    assert next(numbers) == 2


def test_a_reading_that_does_not_end_is_waited_for_once_and_not_by_everyone() -> None:
    never = threading.Event()
    fresh = Fresh(never.wait, keep=60, within=3600)
    fresh.begin()
    assert fresh._last is not None
    fresh._last.began -= 3600
    assert fresh.get() is None
    never.set()


def test_a_reading_that_fails_gives_nothing_and_the_next_may_work() -> None:
    answers = iter([lambda: 1 / 0, lambda: 1.0])
    fresh = Fresh(lambda: next(answers)(), keep=60, within=60)
    assert fresh.get() is None


def test_servers_that_are_away_are_named_without_their_passwords(tmp_path: Path) -> None:
    settings = Settings(
        database_url=f"postgresql://app:s3cret@/shop?host={tmp_path}",
        redis_url="redis://app:s3cret@127.0.0.1:1/0",
        _env_file=None,
    )  # type: ignore[call-arg, arg-type]
    found = Servers(settings).findings()
    assert "cannot reach PostgreSQL at postgresql://app:***@/shop" in str(found["postgresql"])
    assert (found["schema"], str(found["redis"]).partition(":")[0]) == ("not known", "ConnectionError")
    assert "s3cret" not in str(found)


@given(
    st.lists(st.floats(0, 1e6) | st.sampled_from(SECONDS), max_size=50),
    st.sampled_from([SECONDS, EVENTS]),
    st.integers(0, 50),
)
def test_a_histogram_counts_what_is_no_larger_than_each_bound(
    values: list[float], bounds: tuple[float, ...], singly: int
) -> None:
    tally = Histogram(bounds)
    for value in values[:singly]:
        tally.observe(value)
    tally.observe_all(values[singly:])
    limits = [*bounds, float("inf")]
    assert tally.buckets() == [
        ("+Inf" if limit == float("inf") else f"{float(limit):g}", sum(value <= limit for value in values))
        for limit in limits
    ]
    assert tally.total == pytest.approx(sum(values))


@pytest.mark.parametrize(("given", "port"), [("", None), ("0", 0), ("9100", 9100)])
def test_the_port_is_off_unless_it_is_said(monkeypatch: pytest.MonkeyPatch, given: str, port: int | None) -> None:
    assert Settings(_env_file=None).metrics_port is None  # type: ignore[call-arg]
    monkeypatch.setenv("OUTBOX_METRICS_PORT", given)
    assert Settings(_env_file=None).metrics_port == port  # type: ignore[call-arg]
