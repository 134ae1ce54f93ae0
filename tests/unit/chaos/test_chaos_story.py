"""The story of a finding has its event's path and the faults near it, and nothing of what happened elsewhere."""

from __future__ import annotations

from typing import Any

from tests.chaos.checker import Finding
from tests.chaos.facts import Facts, Said, Sighting, Transaction
from tests.chaos.schedule import Schedule
from tests.chaos.story import NEAR, tell

FACTS = Facts(
    transactions=(
        Transaction("w-1", (Said("id-1", "order", "k", 1, "s"),), "ok"),
        Transaction("w-2", (Said("id-2", "order", "k", 2, "s"),), "ok"),
    ),
    sightings=(
        Sighting("order", 100, 7, "id-1"),
        Sighting("order:book", 100, 7, "id-1"),
        Sighting("order", 100, 8, "id-2"),
    ),
)
LOST = Finding("lost", "id-1", "book never got it")


def entry(t: float, who: str, what: str, **facts: Any) -> dict[str, Any]:
    return {"t": t, "who": who, "pid": 9, "what": what, **facts}


ENTRIES = [
    entry(1000.0, "harness", "fault", kind="long before"),
    entry(1010.0 - NEAR, "harness", "fault", kind="just before"),
    entry(1010.0, "writer-1", "intent", tx="w-1", events=[{"id": "id-1"}]),
    entry(1010.1, "writer-1", "intent", tx="w-2", events=[{"id": "id-2"}]),
    entry(1010.2, "writer-1", "ok", tx="w-1"),
    entry(1010.3, "writer-1", "ok", tx="w-2"),
    entry(1010.5, "worker-2", "run", handler="book", event="id-1", error=""),
    entry(1010.5 + NEAR, "harness", "fault", kind="just after"),
    entry(1020.0, "harness", "fault", kind="long after"),
]


def told(finding: Finding = LOST, **more: Any) -> list[str]:
    return tell(Schedule(417, 12.0, lease=3.0), [finding], FACTS, ENTRIES, **more).splitlines()


def test_the_seed_its_configuration_and_the_finding_come_first() -> None:
    first, configuration = told()[:2]
    assert first == "seed 417, 12 s: 1 findings, of which the first: lost: book never got it (event id-1)"
    assert "'lease': 3.0" in configuration
    assert "faults" not in configuration


def test_then_comes_the_path_of_the_event_with_the_end_of_its_transaction_and_the_faults_near_it() -> None:
    assert told()[2:] == [
        "    7.000  harness:9 fault kind=just before",
        "   10.000  writer-1:9 intent tx=w-1, events=[{'id': 'id-1'}]",
        "   10.200  writer-1:9 ok tx=w-1",
        "   10.500  worker-2:9 run handler=book, event=id-1",
        "   13.500  harness:9 fault kind=just after",
        "  on 'order' at 100-7",
        "  on 'order:book' at 100-7",
    ]


def test_a_finding_about_no_event_shows_all_faults_and_no_path() -> None:
    faults = [line.partition("kind=")[2] for line in told(Finding("stuck", "", "2 pending"))[2:]]
    assert faults == ["long before", "just before", "just after", "long after"]


def test_what_the_servers_hold_comes_last() -> None:
    assert told(found=["  relay: 7"])[-1] == "  relay: 7"


def test_a_value_too_long_for_a_line_is_cut() -> None:
    long = [entry(1.0, "writer-1", "intent", tx="w-1", events=["x" * 5000])]
    assert len(tell(Schedule(1, 1.0), [LOST], FACTS, long).splitlines()[2]) < 500
