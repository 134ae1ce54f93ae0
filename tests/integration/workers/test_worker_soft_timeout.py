"""Handlers that are told when they take long, and what comes of their events."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TASKS = """
import asyncio, time
import workers
app = workers.App()
OPTIONS = dict(soft_timeout=0.2, timeout=3, backoff=workers.Backoff(initial=1000, jitter=0), concurrency=3)

def spin():
    while True:
        time.sleep(0.01)

@app.handler("coroutine", **OPTIONS)
async def coroutine(how: str) -> None:
    try:
        await asyncio.sleep(1000)
    except workers.SoftTimeout:
        await asyncio.sleep(0.01)
        print("cleaned up", flush=True)
        if how == "passes":
            raise
        if how == "goes on":
            await asyncio.sleep(1000)

def plain(how: str) -> None:
    try:
        time.sleep(1000) if how == "passes" and IN_CHILD else spin()
    except workers.SoftTimeout:
        print("cleaned up", flush=True)
        if how == "passes":
            raise
        if how == "goes on":
            spin()

IN_CHILD = False

@app.handler("thread", **OPTIONS)
def thread(how: str) -> None:
    plain(how)

@app.handler("child", pool="process", **OPTIONS)
def child(how: str) -> None:
    global IN_CHILD
    IN_CHILD = True
    plain(how)
"""


@pytest.mark.parametrize("kind", ["coroutine", "thread", "child"])
def test_at_the_soft_timeout_a_run_is_told_and_at_the_hard_one_it_is_ended(
    kind: str, outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach(kind, kind)
    worker = start(TASKS)
    ids = dict(
        zip(
            ("ends well", "passes", "goes on"),
            outbox.publish(kind, {"how": "ends well"}, {"how": "passes"}, {"how": "goes on"}),
            strict=True,
        )
    )
    wait_for(lambda: len(outbox.states()) == 3)
    states = {how: outbox.states()[event_id] for how, event_id in ids.items()}
    assert states == {"ends well": "done", "passes": "retrying", "goes on": "retrying"}
    errors = dict(outbox.sql.execute("SELECT event_id::text, error FROM outbox.delivery").fetchall())
    assert errors[ids["passes"]].startswith("SoftTimeout: it ran for longer than its soft timeout")
    assert errors[ids["goes on"]] == "HandlerTimeoutError: timed out after 3 s"
    assert worker.output().count("cleaned up") == 3
