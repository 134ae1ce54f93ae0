"""Workers that die between any two of their steps: effects are there once, and everything comes to its end."""

from __future__ import annotations

import re
import signal
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import workers

ROOT = Path(__file__).parents[3]

PLACES = sorted(
    {
        place
        for file in (ROOT / "workers").glob("*.py")
        for place in re.findall(r'\breach\("([\w.]+)"\)', file.read_text())
    }
)
"""Every failpoint of the workers."""

TASKS = """
import asyncio
from pathlib import Path
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
import workers
app = workers.App(backoff=0)
INSERT = text("INSERT INTO effects VALUES (:handler, :n)")

def note(handler, n):
    with open(handler, "a") as notes:
        notes.write(f"{n}\\n")

@app.handler("e")
async def single(n: int, session: AsyncSession) -> None:
    await session.execute(INSERT, {"handler": "single", "n": n})

@app.handler("e", batch=4, batch_wait=0)
async def several(events: list[workers.Event], session: AsyncSession) -> None:
    await session.execute(INSERT, [{"handler": "several", "n": event.payload["n"]} for event in events])

@app.handler("e")
async def stumbles(n: int, session: AsyncSession, context: workers.Context) -> None:
    await session.execute(INSERT, {"handler": "stumbles", "n": n})
    if context.attempt == 1:
        raise ValueError("the first time")

@app.handler("e")
async def plain(n: int) -> None:
    note("plain", n)

@app.handler("e", at_most_once=True)
async def rare(n: int) -> None:
    note("rare", n)

@app.handler("f")
async def long(n: int, session: AsyncSession) -> None:
    await session.execute(INSERT, {"handler": "long", "n": n})
    Path("inside").touch()
    while not Path("go").exists():
        await asyncio.sleep(0.01)
"""

NAMES = {"single": "e", "several": "e", "stumbles": "e", "plain": "e", "rare": "e", "long": "f"}
TRANSACTIONAL = ["single", "several", "stumbles", "long"]
COUNT = 6
IMPATIENT: dict[str, Any] = {"lease": 1.0, "heartbeat": 0.2}


def test_every_step_has_its_failpoint() -> None:
    steps = ["read", "claimed", "marked", "committing", "committed", "ran", "recorded", "acknowledged", "taken_over"]
    assert set(PLACES) >= {f"worker.{step}" for step in steps}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_worker_that_dies_between_two_steps_loses_nothing_and_has_effects_once(
    place: str,
    outbox: Any,
    start: Callable[..., Any],
    work: Callable[..., None],
    until: Any,
    wait_for: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    outbox.sql.execute("CREATE TABLE effects (handler text, n integer)")
    for handler, event in NAMES.items():
        outbox.attach(handler, event)
    for event in ("e", "f"):
        outbox.publish(event, *({"n": n} for n in range(COUNT)))
    # Somebody died with a part of them, longer ago than any lease.
    for source, entries in outbox.redis.xreadgroup("single", "dead", {"outbox:{e}": ">"}, count=2):
        outbox.redis.xclaim(source, "single", "dead", 0, [entry for entry, _ in entries], idle=60_000)

    monkeypatch.setenv("OUTBOX_FAILPOINTS", f"{place}=kill")
    if place != "worker.held":
        Path("go").touch()
    worker = start(TASKS, lease=IMPATIENT["lease"])
    if place == "worker.held":
        wait_for(Path("inside").exists)
        outbox.redis.xtrim("outbox:{f}", maxlen=0, approximate=False)
    assert worker.wait(60) == -signal.SIGKILL, f"{place} was not reached"
    Path("go").touch()

    async def drained(_: workers.Worker) -> None:
        await until(lambda: outbox.count("done") + outbox.count("dead") == COUNT * len(NAMES))
        await until(lambda: not any(outbox.pending(event, handler) for handler, event in NAMES.items()))

    tasks = types.ModuleType("tasks")
    exec(TASKS, tasks.__dict__)
    work(tasks.app, drained, **IMPATIENT)

    applied = Counter(outbox.sql.execute("SELECT handler, n FROM effects").fetchall())
    assert applied == Counter((handler, n) for handler in TRANSACTIONAL for n in range(COUNT))
    assert {int(n) for n in Path("plain").read_text().split()} == set(range(COUNT))
    rare = Counter(int(n) for n in Path("rare").read_text().split())
    assert max(rare.values()) == 1
    # Dead is only what must not run again.
    interrupted = "SELECT count(*) FROM outbox.dead_letter WHERE handler = 'rare' AND error LIKE 'interrupted: run %%'"
    assert outbox.one(interrupted) == outbox.count("dead") >= COUNT - len(rare)
    assert outbox.one("SELECT max(crashes) FROM outbox.delivery") <= 2
