"""Real worker processes that die, or are stopped and replaced."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.oldest

LEASE = 2.0

HEAD = """
import asyncio, os, time
from pathlib import Path
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
import workers
app = workers.App()
INSERT = text("INSERT INTO effects VALUES (:n)")
"""

TWENTY_MS = """
@app.handler("e")
async def h(n: int, session: AsyncSession) -> None:
    await session.execute(INSERT, {"n": n})
    await asyncio.sleep(0.02)
"""


@pytest.fixture(autouse=True)
def _effects(outbox: Any) -> None:
    outbox.sql.execute("CREATE TABLE effects (n integer)")


def effects(outbox: Any) -> list[int]:
    return [row[0] for row in outbox.sql.execute("SELECT n FROM effects ORDER BY n").fetchall()]


def test_what_a_killed_worker_held_is_done_by_another_with_effects_once(
    outbox: Any, start: Callable[..., Any], wait_for: Any
) -> None:
    outbox.attach("h", "e")
    first, second = (start(HEAD + TWENTY_MS, lease=LEASE) for _ in range(2))
    wait_for(lambda: first.started() and second.started())
    outbox.publish("e", *({"n": n} for n in range(150)))
    wait_for(lambda: outbox.count("done") >= 30)
    first.kill()
    wait_for(lambda: outbox.count("done") == 150 and outbox.pending("e", "h") == 0)
    assert effects(outbox) == list(range(150))


LONG = """
@app.handler("e")
async def h(n: int, session: AsyncSession) -> None:
    await session.execute(INSERT, {"n": n})
    Path(f"begun-{n}-{os.getpid()}").touch()
    while not Path("go").exists():
        await asyncio.sleep(0.01)
"""


def test_a_run_that_outlasts_its_lease_again_and_again_is_one_run(
    outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    lease = "SELECT lease::text, extract(epoch FROM due_at)::float8 FROM outbox.delivery WHERE state = 'retrying'"
    outbox.attach("h", "e")
    outbox.write("e", {"n": 1})
    outbox.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " SELECT id, 'h', created_at, 'retrying', 1, now() FROM outbox.event"
    )
    outbox.publish("e", {"n": 2})
    for worker in [start(HEAD + LONG, lease=0.6) for _ in range(2)]:
        wait_for(worker.started)
    wait_for(lambda: len(list(tmp_path.glob("begun-*"))) == 2)
    token, until = outbox.one(lease)
    wait_for(lambda: outbox.one(lease)[1] > until + 2)
    assert outbox.one(lease)[0] == token
    (entry,) = outbox.redis.xpending_range("outbox:{e}", "h", "-", "+", 10)
    assert entry["times_delivered"] == 1
    (tmp_path / "go").touch()
    wait_for(lambda: outbox.count("done") == 2)
    assert len(list(tmp_path.glob("begun-*"))) == 2
    assert effects(outbox) == [1, 2]
    assert outbox.one("SELECT max(crashes) FROM outbox.delivery") == 0


FOR_MINUTES = """
@app.handler("e", timeout=600)
async def long() -> None:
    Path(f"begun-{os.getpid()}").touch()
    await asyncio.sleep(600)

@app.handler("f")
async def short() -> None:
    Path(f"short-{os.getpid()}").touch()
    await asyncio.sleep(0.01 if Path("killed").exists() else 600)

@app.handler("g", timeout=600)
async def again(context: workers.Context) -> None:
    assert context.attempt > 1
    Path(f"again-{os.getpid()}").touch()
    await asyncio.sleep(600)
"""


@pytest.mark.slow
def test_by_default_another_worker_has_what_a_killed_one_held_within_15_s_however_long_it_runs(
    outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("long", "e")
    outbox.attach("short", "f")
    outbox.attach("again", "g")
    first = start(HEAD + FOR_MINUTES)
    wait_for(first.started)
    outbox.publish("e", {})
    outbox.publish("f", {})
    outbox.write("g", {})
    outbox.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " SELECT id, 'again', created_at, 'retrying', 1, now() FROM outbox.event WHERE name = 'g'"
    )
    wait_for(lambda: all(list(tmp_path.glob(f"{what}-*")) for what in ("begun", "short", "again")))
    second = start(HEAD + FOR_MINUTES)
    wait_for(second.started)
    first.kill()
    (tmp_path / "killed").touch()
    wait_for(
        lambda: (
            len(list(tmp_path.glob("begun-*"))) == len(list(tmp_path.glob("again-*"))) == 2
            and outbox.count("done") == 1
        ),
        timeout=15,
        what="the takeover",
    )


UNTIL_GO = """
def note(what):
    with open("log", "a") as log:
        log.write(f"{what} {os.getpid()}\\n")

@app.handler("e", timeout=600)
async def waiting():
    note("begin")
    try:
        while not Path("go").exists():
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        note("ended")

@app.handler("f", timeout=600)
def threaded():
    note("begin")
    try:
        while not Path("go").exists():
            time.sleep(0.01)
    except BaseException:
        note("ended")
        raise
"""


def test_a_stopped_worker_that_goes_on_ends_the_runs_that_another_one_has_begun_meanwhile(
    outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("waiting", "e")
    outbox.attach("threaded", "f")
    log = tmp_path / "log"
    zombie = start(HEAD + UNTIL_GO, lease=LEASE)
    wait_for(zombie.started)
    outbox.publish("e", {})
    outbox.publish("f", {})
    wait_for(lambda: log.exists() and log.read_text().count("begin") == 2)
    zombie.signal(signal.SIGSTOP)
    other = start(HEAD + UNTIL_GO, lease=LEASE)
    wait_for(lambda: log.read_text().count("begin") == 4)
    zombie.signal(signal.SIGCONT)
    wait_for(lambda: log.read_text().count(f"ended {zombie.popen.pid}") == 2, timeout=10)
    (tmp_path / "go").touch()
    wait_for(lambda: outbox.count("done") == 2)
    assert log.read_text().count(f"ended {other.popen.pid}") == 0
    assert outbox.one("SELECT min(attempts), max(attempts), max(crashes) FROM outbox.delivery") == (2, 2, 1)


STOPPABLE = """
FIRST, GO = Path("first"), Path("go")

async def pause():
    try:
        FIRST.touch(exist_ok=False)
    except FileExistsError:
        return False
    while not GO.exists():
        await asyncio.sleep(0.01)
    return True

@app.handler("e")
async def transactional(n: int, session: AsyncSession) -> None:
    await session.execute(INSERT, {"n": n})
    await pause()

@app.handler("f")
async def plain(n: int) -> None:
    await pause()

@app.handler("g", backoff=0)
async def failing(n: int) -> None:
    if await pause():
        raise ValueError("too late")
"""


@pytest.mark.parametrize("attempt", ["first", "retry"])
@pytest.mark.parametrize(("event", "handler"), [("e", "transactional"), ("f", "plain"), ("g", "failing")])
def test_a_worker_that_was_stopped_and_replaced_can_change_nothing(
    attempt: str,
    event: str,
    handler: str,
    outbox: Any,
    start: Callable[..., Any],
    wait_for: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Shorter than it is stopped: that must not be taken for a loop that stands still.
    monkeypatch.setenv("OUTBOX_STANDSTILL", str(LEASE - 0.5))
    outbox.attach("transactional", "e")
    outbox.attach("plain", "f")
    outbox.attach("failing", "g")
    if attempt == "first":
        outbox.publish(event, {"n": 1})
    else:
        outbox.write(event, {"n": 1})
        outbox.sql.execute(
            "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
            " SELECT id, %s, created_at, 'retrying', 1, now() FROM outbox.event",
            [handler],
        )
    zombie = start(HEAD + STOPPABLE, lease=LEASE)
    wait_for((tmp_path / "first").exists)
    zombie.signal(signal.SIGSTOP)
    start(HEAD + STOPPABLE, lease=LEASE)
    wait_for(lambda: outbox.count("done") == 1)
    row = outbox.one("SELECT * FROM outbox.delivery")
    (tmp_path / "go").touch()
    zombie.signal(signal.SIGCONT)
    # Its run ends as lost or superseded, or (a plain one) with an outcome that nobody takes; then it works again.
    outbox.publish(event, {"n": 2})
    zombie.signal(signal.SIGTERM)
    assert zombie.wait() == -signal.SIGTERM
    wait_for(lambda: outbox.count("done") == 2)
    assert outbox.one("SELECT * FROM outbox.delivery WHERE event_id = %s", row[0]) == row
    assert effects(outbox) == ([1, 2] if event == "e" else [])


POISON = """
@app.handler("e", concurrency=5)
async def h(n: int, session: AsyncSession) -> None:
    await session.execute(INSERT, {"n": n})
    if n == 0:
        os._exit(9)
    await asyncio.sleep(0.2)
"""


@pytest.mark.slow
def test_an_event_that_kills_its_worker_three_times_is_dead_and_takes_no_other_with_it(
    outbox: Any, deaths: Callable[..., int]
) -> None:
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(8)))
    died = deaths(HEAD + POISON, lambda: outbox.count("dead") + outbox.count("done") == 8, lease=LEASE)
    assert died == 3
    assert effects(outbox) == list(range(1, 8))
    error, payload, attempts = outbox.one("SELECT error, payload, attempts FROM outbox.dead_letter")
    assert error == "its worker died three times while it ran"
    assert attempts == 3
    assert payload == {"n": 0}


STARVED = """
import resource

@app.handler("e", max_attempts=3, backoff=0)
async def h(n: int) -> None:
    if n == 0:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, resource.RLIM_INFINITY))
        bytearray(2**30)
"""


def test_an_event_that_finds_no_memory_is_dead_after_its_attempts_and_its_worker_goes_on(
    outbox: Any, deaths: Callable[..., int]
) -> None:
    outbox.attach("h", "e")
    outbox.publish("e", *({"n": n} for n in range(8)))
    assert deaths(HEAD + STARVED, lambda: outbox.count("dead") + outbox.count("done") == 8, lease=LEASE) == 0
    error, payload, attempts = outbox.one("SELECT error, payload, attempts FROM outbox.dead_letter")
    assert error.startswith("MemoryError")
    assert (payload, attempts) == ({"n": 0}, 3)


COUNTING = """
@app.handler("e", max_attempts=3, backoff=0)
async def h(n: int, context: workers.Context) -> None:
    with open("attempts", "a") as attempts:
        attempts.write(f"{context.attempt}\\n")
    if context.attempt < 3:
        os._exit(9)
    raise ValueError("the third")
"""


def test_a_run_that_kills_its_worker_counts_as_an_attempt(
    outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("h", "e")
    outbox.publish("e", {"n": 0})
    for _ in range(2):
        start(HEAD + COUNTING, lease=LEASE).wait(60)
    start(HEAD + COUNTING, lease=LEASE)
    wait_for(lambda: outbox.count("dead") == 1)
    assert (tmp_path / "attempts").read_text().split() == ["1", "2", "3"]
    error, attempts = outbox.one("SELECT error, attempts FROM outbox.dead_letter")
    assert error.startswith("ValueError: the third")
    assert attempts == 3
    assert outbox.one("SELECT crashes FROM outbox.delivery") == 2


HOLDING = """
@app.handler("e", concurrency=1, max_attempts=2, backoff=0, timeout=600)
async def h(n: int) -> None:
    with open("began", "a") as began:
        began.write(f"{n} ")
    while n == 0 and not Path("go").exists():
        await asyncio.sleep(0.01)
    if n == 5 and not Path("failed").exists():
        Path("failed").touch()
        raise ValueError("a passing failure")
"""
COUNTS = (
    "SELECT e.payload->>'n', d.state, d.attempts, d.crashes FROM outbox.delivery AS d"
    " JOIN outbox.event AS e ON e.id = d.event_id WHERE (e.payload->>'n')::int >= 0 ORDER BY 1"
)


def test_what_only_waited_at_a_worker_that_died_has_neither_an_attempt_nor_a_crash(
    outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("h", "e")
    # Many that are quick, until the worker reads ahead.
    outbox.publish("e", *({"n": -1} for _ in range(60)))
    worker = start(HEAD + HOLDING, lease=1.0)
    wait_for(lambda: outbox.count("done") == 60)
    outbox.publish("e", *({"n": n} for n in range(6)))
    wait_for(lambda: (tmp_path / "began").read_text().endswith(" 0 ") and outbox.pending("e", "h") == 6)
    worker.kill()
    (tmp_path / "go").touch()
    start(HEAD + HOLDING, lease=1.0)
    wait_for(lambda: outbox.count("done") + outbox.count("dead") == 66)
    assert outbox.sql.execute(COUNTS).fetchall() == [
        ("0", "done", 2, 1),
        *((str(n), "done", 1, 0) for n in range(1, 5)),
        # Its worker's death left it both of its attempts.
        ("5", "done", 2, 0),
    ]


# Of the first death nobody knows whether it came in a run: a crash that costs no attempt.
@pytest.mark.parametrize(("crashes", "then"), [(0, 1), (2, 2)])
def test_a_retry_that_only_waited_at_a_worker_that_died_has_no_attempt_and_no_further_crash(
    crashes: int, then: int, outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("h", "e")
    outbox.publish("e", {"n": 0})
    worker = start(HEAD + HOLDING, lease=1.0)
    wait_for((tmp_path / "began").exists)
    outbox.write("e", {"n": 1})
    outbox.sql.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, crashes, due_at)"
        " SELECT id, 'h', created_at, 'retrying', 0, %s, now() FROM outbox.event WHERE payload->>'n' = '1'",
        [crashes],
    )
    wait_for(lambda: outbox.one("SELECT count(*) FROM outbox.delivery WHERE lease IS NOT NULL") == 1)
    worker.kill()
    (tmp_path / "go").touch()
    start(HEAD + HOLDING, lease=1.0)
    wait_for(lambda: outbox.count("done") + outbox.count("dead") == 2)
    assert outbox.sql.execute(COUNTS).fetchall() == [("0", "done", 2, 1), ("1", "done", 1, then)]
    assert sorted((tmp_path / "began").read_text().split()) == ["0", "0", "1"]


HANGING = """
@app.handler("e")
def h(n: int) -> None:
    Path("inside").touch()
    time.sleep(120)
"""


@pytest.mark.parametrize("signals", [1, 2])
def test_a_thread_that_hangs_cannot_hold_a_worker_past_its_deadline(
    signals: int, outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("h", "e")
    outbox.publish("e", {"n": 1})
    worker = start(HEAD + HANGING, "--grace", "0.3" if signals == 1 else "600")
    wait_for((tmp_path / "inside").exists)
    wait_for(lambda: not stopping(outbox))
    for _ in range(signals):
        worker.signal(signal.SIGTERM)
        if signals == 2:
            wait_for(lambda: worker.popen.poll() is not None or stopping(outbox))
    assert worker.wait() == 0
    assert "RuntimeError" not in worker.output()
    assert "by force" not in worker.output()
    # Handed back: the next worker takes it at once, not after the lease.
    (entry,) = outbox.redis.xpending_range("outbox:{e}", "h", "-", "+", 10)
    assert entry["time_since_delivered"] > 10**9


def stopping(outbox: Any) -> bool:
    """The worker reads no more: its doorbell has hung up."""
    return not any(client["cmd"] in ("xread", "client|unblock") for client in outbox.redis.client_list())


def test_a_worker_told_to_stop_leaves_nothing_that_must_be_waited_for(
    outbox: Any, start: Callable[..., Any], wait_for: Any
) -> None:
    outbox.attach("h", "e")
    first = start(HEAD + TWENTY_MS)
    wait_for(first.started)
    outbox.publish("e", *({"n": n} for n in range(300)))
    wait_for(lambda: outbox.count("done") >= 30)
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    start(HEAD + TWENTY_MS)
    wait_for(lambda: outbox.count("done") == 300 and outbox.pending("e", "h") == 0)
    assert effects(outbox) == list(range(300))
    assert outbox.one("SELECT max(crashes) FROM outbox.delivery") == 0
