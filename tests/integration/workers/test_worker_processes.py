"""Handlers with `pool="process"`: what their children do, and what of it reaches others."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HEAD = """
import ctypes, os, resource, signal, subprocess, sys, time
from pathlib import Path
import workers
app = workers.App()
SOON = workers.Backoff(initial=0, jitter=0)
"""


def alive(pid: int) -> bool:
    """It runs: neither gone nor a zombie that waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


DYING = """
@app.handler("e", pool="process", concurrency=4, backoff=SOON)
def h(n: int, how: str = "") -> None:
    with open("runs", "a") as runs:
        runs.write(f"{n}\\n")
    if how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "exit":
        os._exit(7)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "read":
        ctypes.string_at(0)
    time.sleep(0.01)
"""


@pytest.mark.parametrize(
    ("how", "manner"),
    [
        ("segfault", "killed by SIGSEGV"),
        ("read", "killed by SIGSEGV"),
        ("exit", "exit status 7"),
        ("kill", "killed by SIGKILL"),
    ],
)
def test_a_child_that_dies_takes_only_its_own_event_with_it_and_three_times_is_dead(
    how: str, manner: str, outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("h", "e")
    worker = start(HEAD + DYING)
    outbox.publish("e", *({"n": n, "how": how if n == 20 else ""} for n in range(40)))
    wait_for(lambda: outbox.count("done") == 39 and outbox.count("dead") == 1)
    runs = [int(line) for line in (tmp_path / "runs").read_text().split()]
    assert sorted(runs) == sorted([*range(40), 20, 20])
    error, payload, attempts = outbox.one("SELECT error, payload, attempts FROM outbox.dead_letter")
    assert error == f"its child process died three times while it ran, the last time {manner}"
    assert (payload["n"], attempts) == (20, 3)
    assert outbox.one("SELECT max(attempts) FROM outbox.delivery WHERE state = 'done'") == 1
    assert outbox.one("SELECT max(crashes) FROM outbox.delivery WHERE state = 'done'") == 0
    assert worker.popen.poll() is None


MEMORY = """
@app.handler("e", pool="process", concurrency=2, max_attempts=1)
def h(n: int) -> None:
    if n == 1:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
        held = bytearray(1 << 30)
"""


def test_a_handler_that_runs_out_of_memory_fails_by_itself(
    outbox: Any, start: Callable[..., Any], wait_for: Any
) -> None:
    outbox.attach("h", "e")
    start(HEAD + MEMORY)
    outbox.publish("e", *({"n": n} for n in range(3)))
    wait_for(lambda: outbox.count("done") == 2 and outbox.count("dead") == 1)
    assert outbox.one("SELECT error FROM outbox.dead_letter").startswith("MemoryError")


INJECTED = """
@app.handler("e", pool="process", max_attempts=7)
def h(n: int, event: workers.Event, context: workers.Context, **rest: object) -> None:
    context.logger.info("here.i.am", n=n)
    print("on stdout")
    facts = event.id, event.name, event.payload["text"], context.attempt, context.max_attempts, context.handler
    Path("facts").write_text(repr(facts) + str(os.getpid()) + rest["text"])
"""


def test_event_and_context_are_injected_and_the_payload_arrives_exactly(
    outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("h", "e")
    worker = start(HEAD + INJECTED)
    text = "ä \x1f 😀" * 50_000
    (event_id,) = outbox.publish("e", {"n": 1, "text": text})
    wait_for(lambda: outbox.count("done") == 1)
    found = (tmp_path / "facts").read_text()
    assert found.startswith(f"(UUID('{event_id}'), 'e', {text!r}, 1, 7, 'h')")
    assert found.endswith(text)
    assert f"'h'){worker.popen.pid}" not in found
    wait_for(lambda: "here.i.am" in worker.output() and f"event_id={event_id}" in worker.output())


RAISING = """
class Odd(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")

class Plain(Exception): ...

def deep():
    raise Plain("no")

@app.handler("e", pool="process", max_attempts=2, backoff=workers.Backoff(initial=100, jitter=0))
def h(how: str, n: int = 0) -> None:
    if how == "plain":
        deep()
    if how == "odd":
        raise Odd("one", "two")
    if how == "reject":
        raise workers.Reject("never")
    if how == "later":
        raise workers.RetryLater(1000, "closed")
    if how == "snooze":
        raise workers.Snooze(1000)
    if how == "exit":
        sys.exit("bye")
"""


@pytest.mark.parametrize(
    ("payload", "state", "error"),
    [
        ({"how": "plain"}, "retrying", "Plain: no (at tasks.py:15 in deep)"),
        ({"how": "odd"}, "retrying", "Odd: one and two (at tasks.py:22 in h)"),
        ({"how": "reject"}, "dead", "rejected: never"),
        ({"how": "later"}, "retrying", "RetryLater: closed"),
        ({"how": "snooze"}, "retrying", "snoozed"),
        ({"how": "exit"}, "retrying", "SystemExit: bye"),
        ({"how": "plain", "n": "many"}, "retrying", "field 'n'"),
        ({}, "retrying", "field 'how' is missing"),
    ],
)
def test_what_a_handler_raises_means_what_it_means_everywhere(
    payload: dict[str, Any], state: str, error: str, outbox: Any, start: Callable[..., Any], wait_for: Any
) -> None:
    outbox.attach("h", "e")
    start(HEAD + RAISING)
    outbox.publish("e", payload)
    wait_for(lambda: outbox.count(state) == 1)
    found, attempts, delay = outbox.one(
        "SELECT error, attempts, extract(epoch FROM due_at - clock_timestamp())::float8 FROM outbox.delivery"
    )
    if state == "dead":
        found = outbox.one("SELECT error FROM outbox.dead_letter")
    else:
        assert (delay > 900) == (payload.get("how") in ("later", "snooze"))
    assert error in found
    assert attempts == (0 if payload.get("how") == "snooze" else 1)


HANGING = """
@app.handler("e", pool="process", timeout=0.5, max_attempts=1, concurrency=2)
def h(n: int) -> None:
    if n == 1:
        helper = subprocess.Popen(["sleep", "1000"])
        Path("pids").write_text(f"{os.getpid()} {helper.pid}")
        sum(range(10**12))
"""


def test_at_the_timeout_the_child_is_killed_with_what_it_started_even_in_a_loop_of_c(
    outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("h", "e")
    start(HEAD + HANGING)
    outbox.publish("e", *({"n": n} for n in range(4)))
    wait_for(lambda: outbox.count("done") == 3 and outbox.count("dead") == 1)
    assert outbox.one("SELECT error FROM outbox.dead_letter") == "HandlerTimeoutError: timed out after 0.5 s"
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    wait_for(lambda: not any(alive(pid) for pid in pids))


BUSY = """
@app.handler("e", pool="process", concurrency=2)
def h(n: int) -> None:
    helper = subprocess.Popen(["sleep", "1000"])
    Path(f"pid-{n}").write_text(f"{os.getpid()} {helper.pid}")
    sum(range(10**12)) if n else time.sleep(1000)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_child_outlives_its_worker_not_even_a_busy_one(
    number: signal.Signals, outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("h", "e")
    worker = start(HEAD + BUSY, "--grace", "0.1")
    outbox.publish("e", {"n": 0}, {"n": 1})

    def pids() -> list[int]:
        return [int(pid) for n in (0, 1) for pid in (tmp_path / f"pid-{n}").read_text().split()]

    wait_for(lambda: all((tmp_path / f"pid-{n}").exists() for n in (0, 1)) and len(pids()) == 4)
    assert all(alive(pid) for pid in pids())
    worker.signal(number)
    worker.wait()
    wait_for(lambda: not any(alive(pid) for pid in pids()), timeout=20)
    if number == signal.SIGTERM:
        assert "Exception" not in worker.output()
        # Handed back, at no cost: neither a crash nor an attempt.
        assert outbox.states() == {}
        assert all(
            entry["time_since_delivered"] > 10**9
            for entry in outbox.redis.xpending_range("outbox:{e}", "h", "-", "+", 10)
        )


KEPT = """
@app.handler("e", pool="process", concurrency=2)
def h(n: int) -> None:
    with open("pids", "a") as pids:
        pids.write(f"{os.getpid()}\\n")
"""


def test_children_are_kept_and_one_that_died_while_idle_is_replaced(
    outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("h", "e")
    start(HEAD + KEPT)
    outbox.publish("e", *({"n": n} for n in range(60)))
    wait_for(lambda: outbox.count("done") == 60)
    first = {int(pid) for pid in (tmp_path / "pids").read_text().split()}
    assert len(first) <= 2
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in first))
    outbox.publish("e", *({"n": n} for n in range(60)))
    wait_for(lambda: outbox.count("done") == 120)
    assert outbox.one("SELECT sum(crashes) FROM outbox.delivery") == 0


UNFIT = """
if "workers.child" in sys.modules and "-c" in sys.argv:
    {what}

@app.handler("e", pool="process", max_attempts=1)
def h(n: int) -> None: ...
"""


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("raise RuntimeError('not here')", "RuntimeError: not here"),
        ("os._exit(3)", "its child process did not start: exit status 3"),
    ],
)
def test_a_child_that_cannot_start_is_a_failed_attempt_and_says_why(
    what: str, error: str, outbox: Any, start: Callable[..., Any], wait_for: Any
) -> None:
    outbox.attach("h", "e")
    start(HEAD + UNFIT.format(what=what))
    outbox.publish("e", {"n": 1})
    wait_for(lambda: outbox.count("dead") == 1)
    assert error in outbox.one("SELECT error FROM outbox.dead_letter")


OUTCOMES = """
@app.handler("e", pool="process", backoff=3600, dead_on=LookupError, retry_on=OSError)
def h(n: int) -> object:
    if n == 4:
        return broken("redis://shop:s3cret@cache/0")
    return [None, workers.Done(), workers.Dead("no such user"), workers.Retry(delay=60, reason="closed")][n]

def broken(url: str) -> None:
    raise KeyError(url)
"""


def test_a_child_returns_outcomes_and_its_errors_are_sorted_and_kept_as_any_others(
    outbox: Any, start: Callable[..., Any], wait_for: Any
) -> None:
    outbox.attach("h", "e")
    start(HEAD + OUTCOMES)
    outbox.publish("e", *({"n": n} for n in range(5)))
    wait_for(lambda: outbox.count("done") == 2 and outbox.count("dead") == 2 and outbox.count("retrying") == 1)
    assert outbox.one("SELECT error FROM outbox.delivery WHERE state = 'retrying'").startswith("RetryLater: closed")
    letters = outbox.sql.execute("SELECT payload->>'n', error, traceback FROM outbox.dead_letter ORDER BY 1").fetchall()
    assert letters[0][:2] == ("2", "rejected: no such user")
    assert letters[1][1].startswith("KeyError: 'redis://shop:***@cache/0' (at tasks.py:")
    assert "in broken\n" in letters[1][2]
    assert "s3cret" not in letters[1][2]
