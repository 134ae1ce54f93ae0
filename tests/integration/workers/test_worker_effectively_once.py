"""Once in effect where it is hardest: COMMIT without an answer, and workers that stand still just before it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import workers
from outbox.settings import Settings
from workers import Event
from workers.transaction import HandlerSession

LEASE = 2.0
INSERT = text("INSERT INTO effects VALUES (:n)")


@pytest.fixture(autouse=True)
def _effects(outbox: Any) -> None:
    # Without a unique key, so that a second application shows.
    outbox.sql.execute("CREATE TABLE effects (n integer)")


def effects(outbox: Any) -> list[int]:
    return [row[0] for row in outbox.sql.execute("SELECT n FROM effects ORDER BY n").fetchall()]


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("lost", ["request", "reply"])
def test_commit_without_an_answer_is_looked_up_and_repeated_only_if_it_never_came(
    outbox: Any,
    settings: Settings,
    until: Any,
    database_proxy: Any,
    monkeypatch: pytest.MonkeyPatch,
    lost: str,
    batch: int | None,
) -> None:
    app, runs, asked = workers.App(), [], asyncio.Event()
    proxy, url = database_proxy
    commit = HandlerSession.commit

    def commit_into_the_dark(session: HandlerSession) -> None:
        if not asked.is_set():
            asked.set()
            (proxy.mute if lost == "reply" else proxy.deafen)()
        commit(session)

    monkeypatch.setattr(HandlerSession, "commit", commit_into_the_dark)

    async def effect(numbers: list[int], session: AsyncSession) -> None:
        runs.append(numbers)
        await session.execute(INSERT, [{"n": n} for n in numbers])

    if batch is None:

        @app.handler("e", name="h")
        async def one(n: int, session: AsyncSession) -> str:
            await effect([n], session)
            return "it's done"

    else:

        @app.handler("e", name="h", batch=batch, batch_wait=0)
        async def several(events: list[Event], session: AsyncSession) -> workers.Done:
            await effect([event.payload["n"] for event in events], session)
            return workers.Done(result="it's done")

    outbox.attach("h", "e")
    numbers = list(range(batch or 1))
    events = outbox.write("e", *({"n": n} for n in numbers))
    outbox.push("e", events)

    async def main() -> None:
        beyond = settings.model_copy(update={"database_url": SecretStr(url)})
        async with workers.Worker(app, beyond):
            await asked.wait()
            if lost == "reply":
                await until(lambda: outbox.count("done") == len(numbers))
            proxy.cut()
            await until(lambda: outbox.count("done") == len(numbers) and outbox.pending("e", "h") == 0)

    asyncio.run(main())
    assert runs == ([numbers] if lost == "reply" else [numbers, numbers])
    assert effects(outbox) == numbers
    assert outbox.one("SELECT max(attempts) FROM outbox.delivery") == 1
    assert outbox.one("SELECT min(result::text), max(result::text) FROM outbox.delivery") == ('"it\'s done"',) * 2


STANDING_STILL = """
import os, signal, time
from pathlib import Path
from sqlalchemy import text
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.orm import Session
import workers
from workers import Event
app = workers.App()
INSERT = text("INSERT INTO effects VALUES (:n)")
commit = DefaultDialect.do_commit

def stand_still_before_commit(dialect, connection):
    # The delivery's row has been sent, and this is the driver's COMMIT.
    try:
        Path("first").touch(exist_ok=False)
    except FileExistsError:
        return commit(dialect, connection)
    os.kill(os.getpid(), signal.SIGSTOP)
    # Another thread may be the first to stop.
    time.sleep(600)

DefaultDialect.do_commit = stand_still_before_commit

@app.handler("e", timeout=600)
def one(n: int, session: Session) -> None:
    session.execute(INSERT, {"n": n})

@app.handler("f", timeout=600, batch=4, batch_wait=0.5)
def several(events: list[Event], session: Session):
    session.execute(INSERT, [{"n": e.payload["n"]} for e in events])
    if not Path("first").exists():
        return {e.id: workers.Snooze(0.01) for e in events if e.payload["n"] == 3}
"""


@pytest.mark.parametrize("attempt", ["first", "retry"])
@pytest.mark.parametrize(("event", "handler", "count"), [("e", "one", 1), ("f", "several", 4)])
def test_nobody_waits_for_the_rows_of_a_worker_that_stands_still_at_its_commit(
    attempt: str,
    event: str,
    handler: str,
    count: int,
    outbox: Any,
    start: Callable[..., Any],
    wait_for: Any,
    tmp_path: Path,
) -> None:
    outbox.attach("one", "e")
    outbox.attach("several", "f")
    held = [{"n": n} for n in range(count)]
    if attempt == "first":
        outbox.publish(event, *held)
    else:
        outbox.write(event, *held)
        outbox.sql.execute(
            "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
            " SELECT id, %s, created_at, 'retrying', 1, now() FROM outbox.event",
            [handler],
        )
    zombie = start(STANDING_STILL, lease=LEASE)
    wait_for((tmp_path / "first").exists)
    other = start(STANDING_STILL, lease=LEASE)
    wait_for(other.started)
    outbox.publish(event, *({"n": n} for n in range(10, 60)))
    wait_for(lambda: {n for n in effects(outbox) if n >= 10} == set(range(10, 60)))
    open_rows = 0
    for (key,) in outbox.sql.execute("SELECT event_id FROM outbox.delivery").fetchall():
        try:
            outbox.sql.execute("SELECT FROM outbox.delivery WHERE event_id = %s FOR UPDATE NOWAIT", [key])
        except psycopg.errors.LockNotAvailable:
            open_rows += 1
    # New rows came with their COMMIT in one message; that of a retry is open, and claims pass it by.
    assert open_rows == (1 if (attempt, event) == ("retry", "e") else 0)
    assert outbox.one("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") == 0
    assert "postgres.lost" not in other.output()
    zombie.kill()
    wait_for(lambda: outbox.count("done") == 50 + count and outbox.pending(event, handler) == 0)
    found = effects(outbox)
    # Of a batch that answered, what it wrote for the event that it put off is committed, too.
    again = [3] if event == "f" else []
    assert found == sorted([*range(count), *range(10, 60), *again])
