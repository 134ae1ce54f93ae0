"""Handlers with `at_most_once=True`: dead before the run, done after it, and never run again by anybody."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

import workers
from outbox import admin
from workers.job import Job
from workers.lane import Lane

LEASE = 2.0

HEAD = """
import asyncio, os, time
from pathlib import Path
import workers
app = workers.App()

def note(n):
    with open("runs", "a") as runs:
        runs.write(f"{n}\\n")

def waits(n):
    return n == 0 and not Path("go").exists()
"""

KINDS = {
    "async": """
@app.handler("e", at_most_once=True)
async def h(n: int) -> None:
    note(n)
    while waits(n):
        await asyncio.sleep(0.01)
""",
    "thread": """
@app.handler("e", at_most_once=True)
def h(n: int) -> None:
    note(n)
    while waits(n):
        time.sleep(0.01)
""",
    "process": """
@app.handler("e", at_most_once=True, pool="process")
def h(n: int) -> None:
    note(n)
    while waits(n):
        time.sleep(0.01)
""",
}


def runs(folder: Path) -> list[int]:
    file = folder / "runs"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_killed_is_a_dead_letter_and_nothing_runs_it_again(
    outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path, kind: str
) -> None:
    outbox.attach("h", "e")
    first = start(HEAD + KINDS[kind], lease=LEASE)
    (id,) = outbox.publish("e", {"n": 0})
    wait_for(lambda: runs(tmp_path) == [0])
    first.kill()
    start(HEAD + KINDS[kind], lease=LEASE)
    outbox.publish("e", {"n": 1})
    # Its entry was taken over by the other worker, which found the outcome; then it looked for retries once more.
    wait_for(lambda: outbox.count("done") == 1 and outbox.pending("e", "h") == 0)
    outbox.publish("e", {"n": 2})
    wait_for(lambda: outbox.count("done") == 2)
    assert runs(tmp_path) == [0, 1, 2]
    wait_for(lambda: admin.dead_letters(outbox.sql))
    (letter,) = admin.dead_letters(outbox.sql)
    assert (str(letter.event_id), letter.attempts, letter.payload_json) == (id, 1, '{"n": 0}')
    assert letter.error.startswith("interrupted: run ")
    assert outbox.one("SELECT state, attempts, lease, due_at FROM outbox.delivery WHERE event_id = %s", id) == (
        "dead", 1, None, None,
    )  # fmt: skip


def test_a_delivery_is_dead_while_it_runs_and_done_afterwards(
    outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("h", "e")
    start(HEAD + KINDS["async"], lease=LEASE)
    outbox.publish("e", {"n": 0})
    wait_for(lambda: runs(tmp_path) == [0])
    assert outbox.one("SELECT state FROM outbox.delivery") == "dead"
    # It needs no lease: its entry is acknowledged while it runs.
    wait_for(lambda: outbox.pending("e", "h") == 0)
    assert outbox.one("SELECT error FROM outbox.dead_letter").startswith("interrupted: run ")
    (tmp_path / "go").touch()
    wait_for(lambda: outbox.count("done") == 1)
    assert outbox.one("SELECT attempts, error FROM outbox.delivery") == (1, None)
    assert admin.dead_letters(outbox.sql) == []
    assert outbox.one("SELECT count(*) FROM outbox.dead_letter") == 0


def test_a_worker_that_was_stopped_and_replaced_ends_its_run_and_no_other_begins_it(
    outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("h", "e")
    zombie = start(HEAD + KINDS["async"], lease=LEASE)
    outbox.publish("e", {"n": 0})
    wait_for(lambda: runs(tmp_path) == [0])
    zombie.signal(signal.SIGSTOP)
    start(HEAD + KINDS["async"], lease=LEASE)
    wait_for(lambda: outbox.pending("e", "h") == 0)
    outbox.publish("e", {"n": 1})
    wait_for(lambda: outbox.count("done") == 1)
    (tmp_path / "go").touch()
    zombie.signal(signal.SIGCONT)
    wait_for(lambda: outbox.count("done") == 2)
    assert runs(tmp_path) == [0, 1]
    assert outbox.one("SELECT count(*) FROM outbox.dead_letter") == 0


def test_a_replay_runs_it_again_and_marks_it_again(
    outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("h", "e")
    first = start(HEAD + KINDS["async"], lease=LEASE)
    outbox.publish("e", {"n": 0})
    wait_for(lambda: runs(tmp_path) == [0])
    first.kill()
    second = start(HEAD + KINDS["async"], lease=LEASE)
    before = outbox.one("SELECT error FROM outbox.dead_letter")
    wait_for(lambda: admin.count_dead_letters(outbox.sql) == 1)
    assert admin.replay(outbox.sql, admin.Selection(handler="h")).count == 1
    wait_for(lambda: runs(tmp_path) == [0, 0])
    second.kill()
    assert outbox.one("SELECT state, lease FROM outbox.delivery") == ("dead", None)
    assert outbox.one("SELECT error FROM outbox.dead_letter WHERE replayed_at IS NULL") != before
    (tmp_path / "go").touch()
    start(HEAD + KINDS["async"], lease=LEASE)
    wait_for(lambda: admin.count_dead_letters(outbox.sql) == 1)
    assert admin.replay(outbox.sql, admin.Selection(handler="h")).count == 1
    wait_for(lambda: outbox.count("done") == 1)
    assert runs(tmp_path) == [0, 0, 0]
    assert outbox.one("SELECT count(*) FROM outbox.dead_letter") == 0


def test_the_letter_of_a_run_under_way_is_neither_shown_nor_replayed_however_long_it_runs(
    outbox: Any, work: Any, until: Any
) -> None:
    app, ran, go = workers.App(), list[int](), asyncio.Event()

    @app.handler("e", name="h", at_most_once=True)
    async def h(n: int) -> None:
        ran.append(n)
        await go.wait()

    outbox.attach("h", "e")
    (id,) = outbox.publish("e", {"n": 0})

    async def scenario(_: workers.Worker) -> None:
        await until(lambda: ran)
        lease_ends = outbox.one("SELECT died_at FROM outbox.dead_letter")
        await until(lambda: outbox.one("SELECT clock_timestamp() > %s", lease_ends))
        for which in (admin.Selection(), admin.Selection(ids=(UUID(id),)), admin.Selection(handler="h")):
            assert admin.dead_letters(outbox.sql, which) == []
            assert admin.error_groups(outbox.sql, which) == []
            for outcome in (admin.Outcome.DEAD, admin.Outcome.ANY):
                assert admin.replay(outbox.sql, which, outcome=outcome) == admin.Replayed(asked=0, count=0, total=0)
        (handler,) = admin.status(outbox.sql).handlers
        assert handler.dead == admin.Count(0)
        go.set()
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario, lease=2.0, heartbeat=0.2)
    assert ran == [0]
    assert outbox.one("SELECT count(*) FROM outbox.dead_letter") == 0


def fail(n: int) -> Any:
    if n == 0:
        raise ValueError("no")
    if n == 1:
        raise workers.RetryLater(0, "later")
    if n == 2:
        raise workers.Snooze(0, "not now")
    if n == 3:
        raise workers.Reject("never")
    return workers.Retry(0, "closed")


ERRORS = ["ValueError: no", "RetryLater: later", "Snooze: not now", "rejected: never", "RetryLater: closed"]


@pytest.mark.parametrize("replayed", [False, True])
def test_a_failure_is_final_whatever_it_asks_for_and_its_error_is_kept(
    outbox: Any, work: Any, until: Any, replayed: bool
) -> None:
    app = workers.App(backoff=0)
    app.handler("e", name="h", at_most_once=True)(fail)
    outbox.attach("h", "e")

    def errors() -> list[str]:
        found = outbox.sql.execute(
            "SELECT l.error FROM outbox.dead_letter l JOIN outbox.delivery d USING (event_id, handler, error)"
            " WHERE d.state = 'dead' AND d.attempts = 1 AND l.attempts = 1 AND l.traceback IS NOT NULL"
            " AND l.replayed_at IS NULL ORDER BY l.payload->>'n'"
        ).fetchall()
        return [row[0].partition(" (at ")[0] for row in found]

    async def scenario(_: workers.Worker) -> None:
        outbox.publish("e", *({"n": n} for n in range(5)))
        await until(lambda: errors() == ERRORS)
        if replayed:
            admin.replay(outbox.sql, admin.Selection(handler="h"))
            await until(lambda: errors() == ERRORS)

    work(app, scenario)
    assert outbox.one("SELECT min(replays), max(replays) FROM outbox.delivery") == ((1, 1) if replayed else (0, 0))


def test_a_run_that_takes_too_long_is_dead_with_that_error(outbox: Any, work: Any, until: Any) -> None:
    app = workers.App()

    @app.handler("e", at_most_once=True, timeout=0.1)
    async def h(n: int) -> None:
        await asyncio.sleep(60)

    outbox.attach("h", "e")

    async def scenario(_: workers.Worker) -> None:
        outbox.publish("e", {"n": 0})
        await until(lambda: "timed out" in str(outbox.one("SELECT error FROM outbox.dead_letter")))

    work(app, scenario)
    assert outbox.count("dead") == 1


def test_waiting_for_postgresql_is_none_of_the_runs_time(
    outbox: Any, work: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, ran, restarts = workers.App(), list[int](), list[Job]()

    @app.handler("e", at_most_once=True, timeout=0.3)
    async def h(n: int) -> None:
        ran.append(n)

    restart_clock = Lane.restart_clock

    def restart(lane: Lane, job: Job) -> None:
        restarts.append(job)
        restart_clock(lane, job)

    monkeypatch.setattr(Lane, "restart_clock", restart)
    outbox.attach("h", "e")

    async def scenario(_: workers.Worker) -> None:
        with psycopg.connect(outbox.settings.libpq_url()) as blocker:
            blocker.execute("LOCK TABLE outbox.delivery IN SHARE MODE")
            outbox.publish("e", {"n": 7})
            # Each half a timeout after the one before.
            await until(lambda: len(restarts) >= 4)
        await until(lambda: outbox.count("done") == 1)

    work(app, scenario)
    assert ran == [7]
