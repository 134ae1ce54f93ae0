from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from outbox.settings import Settings
from workers.standstill import ENDED_BY, Standstill
from workers.supervisor import Supervisor


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    numbers: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: numbers.append(number))
    return numbers


def test_only_rounds_in_which_the_loop_stood_count_and_each_for_its_length_at_the_most(killed: list[int]) -> None:
    standstill = Standstill(10.0, round=1.0)
    try:
        for _ in range(10):
            # The process was stopped for an hour in each of them.
            standstill.turns(False, 3600.0)
        standstill.turns(True, 1.0)
        for _ in range(10):
            standstill.turns(False, 1.0)
        assert killed == []
        standstill.turns(False, 1.0)
        assert killed == [ENDED_BY]
    finally:
        standstill.over()


def test_the_processor_time_that_is_left_is_renewed_with_each_round_and_given_back_at_the_end(
    killed: list[int],
) -> None:
    standstill = Standstill(1000.0, round=1.0)
    left, _ = signal.getitimer(signal.ITIMER_PROF)
    assert 900 < left <= 1001
    signal.setitimer(signal.ITIMER_PROF, 500)
    standstill.turns(False, 1.0)
    assert signal.getitimer(signal.ITIMER_PROF)[0] > 900
    standstill.over()
    assert signal.getitimer(signal.ITIMER_PROF)[0] == 0
    standstill.turns(False, 1.0)
    assert signal.getitimer(signal.ITIMER_PROF)[0] == 0


def test_nothing_is_ended_where_it_is_off_or_where_a_profiler_has_the_signal(
    killed: list[int], monkeypatch: Any
) -> None:
    off = Standstill(0.0, round=1.0)
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    for standstill in (off, Standstill(1.0, round=1.0)):
        for _ in range(5):
            standstill.turns(False, 1.0)
        standstill.over()
    assert killed == []
    assert signal.getitimer(signal.ITIMER_PROF)[0] == 0


@pytest.mark.parametrize(("status", "reason"), [(-ENDED_BY, "its event loop stood still"), (-signal.SIGKILL, None)])
def test_a_supervisor_says_of_a_process_that_stood_still_why_it_ended(status: int, reason: str | None) -> None:
    process = SimpleNamespace(pid=1)
    child: Any = SimpleNamespace(
        number=0, crashes=0, started_at=0.0, restart_at=None, process=process, status=lambda: status
    )
    supervisor = Supervisor("shop.tasks:app", Settings(), 1)
    supervisor._children = {0: child}
    with capture_logs() as lines:
        supervisor._tend()
    assert [(line["event"], line.get("reason")) for line in lines] == [("worker.crashed", reason)]
