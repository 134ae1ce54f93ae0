"""Worker processes in which a handler lets nothing else run: they end, and their event dies in the end."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HOLDING = """
import time
from pathlib import Path
import workers
app = workers.App(backoff=0)

@app.handler("c", timeout=1)
def in_c(n: int) -> None:
    Path("inside").touch()
    sum(range(10**12))

@app.handler("s")
async def asleep(n: int) -> None:
    Path("inside").touch()
    time.sleep(600)

@app.handler("f")
async def bystander(n: int) -> None: ...
"""


def test_an_event_whose_handler_keeps_the_interpreter_is_dead_after_three_workers_and_all_others_are_done(
    outbox: Any, deaths: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOX_STANDSTILL", "1.5")
    outbox.attach("in_c", "c")
    outbox.attach("bystander", "f")
    outbox.publish("c", {"n": 1})
    outbox.publish("f", *({"n": n} for n in range(5)))
    died = deaths(HOLDING, lambda: outbox.count("dead") == 1 and outbox.count("done") == 5, lease=1.0)
    assert died == 3
    assert outbox.one("SELECT handler, error FROM outbox.dead_letter") == (
        "in_c",
        "its worker died three times while it ran",
    )
    shown = [log.read_text() for log in tmp_path.glob("worker-*.log")]
    assert sum("in in_c" in text for text in shown) == 3


@pytest.mark.parametrize(("event", "handler"), [("c", "in_c"), ("s", "asleep")])
def test_a_process_in_which_nothing_else_runs_ends_when_it_is_told(
    event: str,
    handler: str,
    outbox: Any,
    start: Callable[..., Any],
    wait_for: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OUTBOX_STANDSTILL", "1.5")
    outbox.attach(handler, event)
    outbox.publish(event, {"n": 1})
    worker = start(HOLDING)
    wait_for((tmp_path / "inside").exists)
    worker.signal(signal.SIGTERM)
    # Long before the 30 s that it gives its runs.
    assert worker.wait(timeout=25) == -signal.SIGPROF
    assert f"in {handler}" in worker.output()
