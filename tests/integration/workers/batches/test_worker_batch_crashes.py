"""Real worker processes that die in the middle of a batch, or are stopped and replaced."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LEASE = 2.0

HEAD = """
import asyncio, os
from pathlib import Path
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
import workers
from workers import Event
app = workers.App()
INSERT = text("INSERT INTO effects VALUES (:n)")
FIRST, GO = Path("first"), Path("go")

async def pause():
    try:
        FIRST.touch(exist_ok=False)
    except FileExistsError:
        return
    while not GO.exists():
        await asyncio.sleep(0.01)

"""

PAUSING = """
@app.handler("e", batch=20)
async def h(events: list[Event], session: AsyncSession) -> None:
    await session.execute(INSERT, [{"n": e.payload["n"]} for e in events])
    await pause()

@app.handler("f", batch=20)
async def plain(events: list[Event]) -> None:
    await pause()
"""


@pytest.mark.parametrize(("event", "handler"), [("e", "h"), ("f", "plain")])
def test_all_events_of_a_batch_whose_worker_is_killed_run_again_elsewhere(
    event: str, handler: str, outbox: Any, batches: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("h", "e")
    outbox.attach("plain", "f")
    outbox.publish(event, *({"n": n} for n in range(50)))
    first = start(HEAD + PAUSING, lease=LEASE)
    wait_for((tmp_path / "first").exists)
    first.kill()
    start(HEAD + PAUSING, lease=LEASE)
    wait_for(lambda: outbox.count("done") == 50 and outbox.pending(event, handler) == 0)
    assert batches.effects() == (list(range(50)) if event == "e" else [])


@pytest.mark.parametrize("attempt", ["first", "retry"])
def test_a_batch_of_a_worker_that_was_stopped_and_replaced_commits_nothing(
    attempt: str, outbox: Any, batches: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("h", "e")
    outbox.attach("plain", "f")
    payloads = [{"n": n} for n in range(20)]
    if attempt == "first":
        outbox.publish("e", *payloads)
    else:
        outbox.write("e", *payloads)
        outbox.sql.execute(
            "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
            " SELECT id, 'h', created_at, 'retrying', 1, now() FROM outbox.event"
        )
    zombie = start(HEAD + PAUSING, lease=LEASE)
    wait_for((tmp_path / "first").exists)
    zombie.signal(signal.SIGSTOP)
    start(HEAD + PAUSING, lease=LEASE)
    wait_for(lambda: outbox.count("done") == 20)
    rows = outbox.sql.execute("SELECT * FROM outbox.delivery ORDER BY event_id").fetchall()
    (tmp_path / "go").touch()
    zombie.signal(signal.SIGCONT)
    # It goes on, finds what it lost, and is told to stop.
    zombie.signal(signal.SIGTERM)
    zombie.wait()
    assert outbox.sql.execute("SELECT * FROM outbox.delivery ORDER BY event_id").fetchall() == rows
    assert batches.effects() == list(range(20))


POISON = """
@app.handler("e", batch=10)
async def h(events: list[Event], session: AsyncSession) -> None:
    await session.execute(INSERT, [{"n": e.payload["n"]} for e in events])
    if any(e.payload["n"] == 0 for e in events):
        os._exit(9)
"""


@pytest.mark.slow
def test_an_event_that_kills_its_worker_runs_alone_afterwards_and_takes_no_other_of_its_batch_with_it(
    outbox: Any, batches: Any, deaths: Callable[..., int]
) -> None:
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(10)))
    died = deaths(HEAD + POISON, lambda: outbox.count("dead") + outbox.count("done") == 10, lease=LEASE)
    assert died == 3
    assert batches.effects() == list(range(1, 10))
    assert outbox.one("SELECT payload FROM outbox.dead_letter") == {"n": 0}
