"""A supervisor's port: what it makes of its children's answers, and of those that give none."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from outbox import families
from outbox.health import STUCK_AFTER, Findings
from workers import reports
from workers.reports import Reports


class Child:
    """Stands for a worker process."""

    def __init__(self, to: Reports, process: int, *, done: int = 1, trouble: str | None = None) -> None:
        self.trouble, self._done = trouble, done
        self.registry = CollectorRegistry()
        self.registry.register(self)
        with to.open(process) as end:
            reports.answer(self, os.dup(end.fileno()))  # type: ignore[arg-type]

    def collect(self) -> Iterator[Metric]:
        yield families.counter("outbox_done", "Done.", {("h",): self._done}, ("handler",))

    def live(self) -> Findings:
        return {"loop": self.trouble}

    def ready(self) -> Findings:
        return {"redis": self.trouble, "worker": None}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Reports:
    """Waits for as long as it takes."""
    monkeypatch.setattr(reports, "WITHIN", 60.0)
    return Reports()


@pytest.fixture
def impatient(told: Reports, monkeypatch: pytest.MonkeyPatch) -> Reports:
    """For those that never answer."""
    monkeypatch.setattr(reports, "WITHIN", 1.0)
    return told


def samples(told: Reports) -> dict[tuple[str, ...], float]:
    return {(s.name, *s.labels.values()): s.value for family in told.collect() for s in family.samples}


def test_the_metrics_of_all_children_are_one_family_by_process(told: Reports) -> None:
    Child(told, 0, done=3), Child(told, 1, done=4)
    found = samples(told)
    assert (found["outbox_done_total", "h", "0"], found["outbox_done_total", "h", "1"]) == (3, 4)
    assert len([family for family in told.collect() if family.name == "outbox_done"]) == 1
    assert (found["outbox_worker_process_up", "0"], found["outbox_worker_crashes_total", "1"]) == (1, 0)


def test_one_that_does_not_answer_is_left_out_and_said_to_be_down(told: Reports, impatient: Reports) -> None:
    Child(told, 0)
    silent = told.open(1)
    found = samples(told)
    assert (found["outbox_worker_process_up", "0"], found["outbox_worker_process_up", "1"]) == (1, 0)
    assert told.ready() == {
        "process 0, redis": None, "process 0, worker": None, "process 1, answer": "none",
    }  # fmt: skip
    silent.close()


def test_one_that_is_gone_is_not_waited_for_and_its_successor_answers_in_its_place(told: Reports) -> None:
    told.open(0).close()
    told.crashed(0)
    assert samples(told)["outbox_worker_process_up", "0"] == 0
    Child(told, 0, done=2)
    found = samples(told)
    assert (found["outbox_done_total", "h", "0"], found["outbox_worker_crashes_total", "0"]) == (2, 1)


def test_a_loop_that_stands_still_is_told_at_once_and_a_silent_child_after_a_while(
    told: Reports, impatient: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    Child(told, 0, trouble="has not turned for 130 s")
    silent = told.open(1)
    assert told.live() == {"process 0, loop": "has not turned for 130 s", "process 1, answer": None}
    monkeypatch.setattr(reports, "STUCK_AFTER", 0.0)
    assert told.live()["process 1, answer"] == "none for 0 s"
    assert STUCK_AFTER >= 60
    silent.close()


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one(told: Reports, impatient: Reports) -> None:
    with told.open(0) as child:
        assert told.ask("live") == {0: None}
        number, _ = child.recv()
        child.send((number, {"loop": "late"}))
        assert told.ask("live") == {0: None}
        child.recv()
