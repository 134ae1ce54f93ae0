"""Worker processes that are replaced by new ones: after a number of events, and when they died."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forking import Forked, Programs

from outbox.settings import Settings

ROOT = Path(__file__).resolve().parents[3]

TASKS = """
import asyncio, os
from pathlib import Path
from sqlalchemy import text
from sqlalchemy.orm import Session
import workers
app = workers.App()

def note(n):
    with open("runs", "a") as runs:
        runs.write(f"{n} {os.getpid()}\\n")

@app.handler("e", concurrency=5)
async def plain(n: int) -> None:
    note(n)
    await asyncio.sleep(0.02)
    note(n)

@app.handler("e", concurrency=3)
def transactional(n: int, session: Session) -> None:
    session.execute(text("INSERT INTO effects VALUES (:n)"), {"n": n})
"""


@pytest.fixture
def command(programs: Programs, tmp_path: Path, settings: Settings) -> Iterator[Callable[..., Any]]:
    """Start `outbox worker tasks:app` with further arguments; its log is `worker.log`."""
    started: list[Forked] = []

    def begin(*arguments: str) -> Forked:
        (tmp_path / "tasks.py").write_text(TASKS)
        with (tmp_path / "worker.log").open("wb") as log:
            process = programs.start(
                ["-P", "-m", "console.main", "worker", "tasks:app", *arguments],
                cwd=tmp_path,
                env=os.environ
                | {
                    "OUTBOX_DATABASE_URL": settings.libpq_url(),
                    "OUTBOX_REDIS_URL": settings.redis_url.get_secret_value(),
                    "PYTHONPATH": str(ROOT),
                },
                stdout=log,
                stderr=log,
            )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_events_that_run_while_their_processes_are_replaced_are_neither_lost_nor_doubled(
    processes: str, outbox: Any, command: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.sql.execute("CREATE TABLE effects (n integer)")
    outbox.attach("plain", "e")
    outbox.attach("transactional", "e")
    worker = command("--processes", processes, "--max-events-per-process", "200")
    outbox.publish("e", *({"n": n} for n in range(300)))
    wait_for(lambda: outbox.count("done") == 600, timeout=150)
    runs = [line.split() for line in (tmp_path / "runs").read_text().splitlines()]
    # Begun and ended, in one process.
    assert set(Counter(map(tuple, runs)).values()) == {2}
    assert sorted(int(n) for n, _ in runs) == sorted([*range(300)] * 2)
    assert sorted(row[0] for row in outbox.sql.execute("SELECT n FROM effects")) == list(range(300))
    assert len({pid for _, pid in runs}) >= 3
    assert outbox.one("SELECT max(crashes) FROM outbox.delivery") == 0
    assert outbox.one("SELECT max(attempts) FROM outbox.delivery") == 1
    log = (tmp_path / "worker.log").read_text()
    assert "worker.replaced" in log
    assert "worker.crashed" not in log
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0


def test_a_process_that_is_killed_is_started_again(
    outbox: Any, command: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    def log(text: str) -> int:
        return (tmp_path / "worker.log").read_text().count(text)

    outbox.sql.execute("CREATE TABLE effects (n integer)")
    outbox.attach("plain", "e")
    outbox.attach("transactional", "e")
    worker = command("--processes", "2")
    wait_for(lambda: log("worker.started") == 2)
    outbox.publish("e", {"n": 1})
    wait_for(lambda: outbox.count("done") == 2)
    _, pid = (tmp_path / "runs").read_text().splitlines()[0].split()
    os.kill(int(pid), signal.SIGKILL)
    wait_for(lambda: log("worker.crashed") == 1 and log("worker.started") == 3)
    outbox.publish("e", {"n": 2})
    wait_for(lambda: outbox.count("done") == 4)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0


def test_a_supervisor_that_is_killed_takes_its_processes_with_it_and_what_they_run_comes_to_its_end(
    outbox: Any, command: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.sql.execute("CREATE TABLE effects (n integer)")
    outbox.attach("plain", "e")
    supervisor = command("--processes", "2")
    wait_for(lambda: (tmp_path / "worker.log").read_text().count("worker.started") == 2)
    outbox.publish("e", *({"n": n} for n in range(20)))
    wait_for(lambda: outbox.count("done") > 0)
    pids = [int(row[0].split("-")[-2]) for row in outbox.sql.execute("SELECT name FROM outbox.worker").fetchall()]
    assert len(pids) == 2
    supervisor.kill()
    supervisor.wait()
    for pid in pids:
        wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists(), what="the end of a process")  # type: ignore[misc]
    runs = Counter((tmp_path / "runs").read_text().splitlines())
    # Begun and ended, and recorded.
    assert set(runs.values()) == {2}
    assert outbox.count("done") == len(runs)


LONG = """
import asyncio
from pathlib import Path
import workers
app = workers.App()

@app.handler("e", concurrency=1, timeout=60)
async def long(hold: bool = True) -> None:
    if not hold:
        return
    Path("inside").touch()
    while not Path("go").exists():
        await asyncio.sleep(0.01)

@app.handler("f")
async def quick() -> None: ...
"""


def test_a_process_that_retires_lets_what_runs_end_and_hands_back_what_waits_at_once(
    outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("long", "e")
    outbox.attach("quick", "f")
    worker = start(LONG, "--max-events", "40", "--grace", "0.1")
    # Quick work, so that more is fetched than runs.
    outbox.publish("e", *({"hold": False} for _ in range(30)))
    wait_for(lambda: outbox.count("done") == 30)
    outbox.publish("e", *({} for _ in range(6)))
    wait_for((tmp_path / "inside").exists)
    wait_for(lambda: outbox.pending("e", "long") >= 3)
    outbox.publish("f", *({} for _ in range(20)))
    wait_for(lambda: "worker.retires" in worker.output())

    def handed_back() -> int:
        entries = outbox.redis.xpending_range("outbox:{e}", "long", "-", "+", 10)
        return len([entry for entry in entries if entry["time_since_delivered"] > 10**9])

    wait_for(lambda: handed_back() >= 2 and handed_back() == outbox.pending("e", "long") - 1)
    assert worker.popen.poll() is None
    (tmp_path / "go").touch()
    assert worker.wait() == 75
    assert outbox.one("SELECT count(*) FROM outbox.delivery WHERE handler = 'long' AND state = 'done'") == 31
    assert handed_back() == outbox.pending("e", "long") >= 2


def test_a_process_that_is_told_to_stop_while_it_retires_waits_for_the_grace_and_no_longer(
    outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("long", "e")
    outbox.attach("quick", "f")
    worker = start(LONG, "--max-events", "3", "--grace", "0.1")
    outbox.publish("e", {})
    wait_for((tmp_path / "inside").exists)
    outbox.publish("f", *({} for _ in range(3)))
    wait_for(lambda: "worker.retires" in worker.output())
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert outbox.count("done") == 3


SWALLOWING = """
import asyncio
from pathlib import Path
import workers
app = workers.App()

@app.handler("e", timeout=0.2, concurrency=1, max_attempts=1)
async def stubborn(n: int) -> None:
    while n == 1:
        Path("inside").touch()
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            pass
"""


@pytest.mark.parametrize("how", ["told", "retires"])
def test_a_coroutine_that_swallows_its_cancellation_is_reported_and_holds_neither_slot_nor_process(
    how: str, outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("stubborn", "e")
    worker = start(SWALLOWING, *(["--max-events", "3"] if how == "retires" else ["--grace", "60"]))
    outbox.publish("e", *({"n": n} for n in range(3)))
    wait_for(lambda: outbox.count("done") == 2 and outbox.count("dead") == 1)
    reason = "HandlerTimeoutError: timed out after 0.2 s and could not be interrupted"
    assert outbox.one("SELECT error FROM outbox.dead_letter") == reason
    (reported,) = [line for line in worker.output().splitlines() if "handler.abandoned" in line]
    assert "handler=stubborn" in reported
    if how == "told":
        worker.signal(signal.SIGTERM)
    assert worker.wait(30) == (0 if how == "told" else 75)
