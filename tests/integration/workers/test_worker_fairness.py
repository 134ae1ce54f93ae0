"""One handler with a long stream beside others: who runs, how much is fetched, and what is handed back."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import workers
from workers import prefetch


@pytest.mark.parametrize("batch", [None, 2])
def test_within_a_bound_for_all_a_slow_handler_with_a_long_stream_starves_no_other(
    batch: int | None, outbox: Any, work: Any, until: Any
) -> None:
    app, gate = workers.App(), asyncio.Event()
    now, most, slow_now = 0, 0, 0

    async def count(wait: bool) -> None:
        nonlocal now, most, slow_now
        now, slow_now = now + 1, slow_now + wait
        most = max(most, now)
        await (gate.wait() if wait else asyncio.sleep(0.001))
        now, slow_now = now - 1, slow_now - wait

    if batch is None:

        @app.handler("e", name="slow")
        async def slow() -> None:
            await count(True)
    else:

        @app.handler("e", name="slow", batch=batch, concurrency=100)
        async def slow_batch(events: list[workers.Event]) -> None:
            await count(True)

    @app.handler("e")
    async def quick() -> None:
        await count(False)

    @app.handler("f")
    async def late() -> None:
        await count(False)

    for name, event in (("slow", "e"), ("quick", "e"), ("late", "f")):
        outbox.attach(name, event)
    outbox.publish("e", *({} for _ in range(200)))
    done = "SELECT count(*) FROM outbox.delivery WHERE handler = %s"

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.one(done, "quick") == 200)
        # It has all that is not kept for others, and no more.
        await until(lambda: slow_now == 4)
        outbox.publish("f", *({} for _ in range(50)))
        await until(lambda: outbox.one(done, "late") == 50)
        assert outbox.one(done, "slow") == 0
        gate.set()
        await until(lambda: outbox.one(done, "slow") == 200)

    work(app, scenario, total_concurrency=6)
    assert most <= 6


def test_handlers_that_are_all_busy_take_turns(outbox: Any, work: Any, until: Any) -> None:
    app, begun = workers.App(), []
    gate = asyncio.Event()

    def busy(name: str) -> None:
        @app.handler(name, name=name)
        async def h() -> None:
            begun.append(name)
            await gate.wait()
            await asyncio.sleep(0.001)

    for name in "abc":
        busy(name)
        outbox.attach(name, name)
        outbox.publish(name, *({} for _ in range(100)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: len(begun) == 5 and all(outbox.pending(name, name) >= 90 for name in "abc"))
        gate.set()
        await until(lambda: outbox.count("done") == 300)

    work(app, scenario, total_concurrency=5)
    turns = begun[10:200]
    assert all(len(set(turns[start : start + 6])) == 3 for start in range(len(turns) - 6))


def test_what_is_fetched_is_bounded_in_entries(outbox: Any, work: Any, until: Any) -> None:
    app, gate, begun, events = workers.App(), asyncio.Event(), 0, 8000

    @app.handler("e", concurrency=10, timeout=300)
    async def h() -> None:
        nonlocal begun
        begun += 1
        # Quick at first, so that the window grows as far as it may.
        if begun > events // 2:
            await gate.wait()

    outbox.attach("h", "e")
    outbox.publish("e", *({} for _ in range(events)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: begun == events // 2 + 10 and outbox.count("done") == events // 2)
        assert 10 < outbox.pending("e", "h") <= prefetch.LARGEST
        gate.set()
        await until(lambda: outbox.count("done") == events)

    work(app, scenario)


LARGE = "x" * 250_000


@pytest.mark.parametrize(
    ("how", "handlers", "events"),
    [
        ("entries", 1, 80),
        ("retries", 1, 80),
        ("batches", 1, 80),
        ("entries", 3, 40),
        ("retries", 3, 40),
    ],
)
def test_what_is_fetched_is_bounded_in_bytes_for_all_handlers_together_also_when_small_events_become_large(
    how: str, handlers: int, events: int, outbox: Any, work: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An eighth, or the test would be one of the server's disk.
    monkeypatch.setattr(prefetch, "MEMORY", prefetch.MEMORY // 8)
    app, gate, begun = workers.App(), asyncio.Event(), 0

    async def run(text: str) -> None:
        nonlocal begun
        begun += 1
        if text:
            await gate.wait()

    async def gather(events: list[workers.Event]) -> None:
        if events[0].payload["text"]:
            await gate.wait()

    names = [f"h{number}" for number in range(handlers)]
    for name in names:
        options: dict[str, Any] = {"batch": 1000} if how == "batches" else {"concurrency": 20}
        app.handler("e", name=name, timeout=300, **options)(gather if how == "batches" else run)
        outbox.attach(name, "e")
    small = 1000
    outbox.publish("e", *({"text": ""} for _ in range(small)))

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.count("done") == handlers * small)
        large = outbox.write("e", *({"text": LARGE} for _ in range(events)))
        if how == "retries":
            outbox.sql.execute(
                "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
                " SELECT e.id, h.name, e.created_at, 'retrying', 1, now()"
                "  FROM outbox.event AS e CROSS JOIN outbox.handler AS h WHERE octet_length(e.payload::text) > 1000"
            )
        else:
            outbox.push("e", large)

        def held() -> int:
            leased = outbox.one("SELECT count(*) FROM outbox.delivery WHERE lease IS NOT NULL")
            return int(leased + sum(outbox.pending("e", name) for name in names))

        def over() -> bool:
            """Nobody may fetch anything more, and everything that was fetched is counted."""
            lanes = worker._lanes.values()
            total = sum(lane.held for lane in lanes)
            full = all(prefetch.affordable(lane.held, total) < prefetch.WORTH for lane in lanes)
            return full and sum(len(lane.active) for lane in lanes) == held()

        await until(over)
        assert begun <= handlers * (small + 20)
        assert held() * len(LARGE) <= prefetch.MEMORY
        gate.set()
        await until(lambda: outbox.count("done") == handlers * (small + events))
        await until(lambda: not any(lane.held for lane in worker._lanes.values()))

    work(app, scenario)


HOLDING = """
import asyncio
from pathlib import Path
import workers
app = workers.App()

@app.handler("e", concurrency=1, timeout=60)
async def h(hold: bool) -> None:
    if hold:
        Path("inside").touch()
        while not Path("go").exists():
            await asyncio.sleep(0.01)
"""


def test_what_is_fetched_and_not_begun_is_handed_back_while_what_runs_still_runs(
    outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("h", "e")
    worker = start(HOLDING)
    outbox.publish("e", *({"hold": False} for _ in range(30)))
    wait_for(lambda: outbox.count("done") == 30)
    outbox.publish("e", *({"hold": True} for _ in range(6)))
    wait_for(lambda: (tmp_path / "inside").exists() and outbox.pending("e", "h") >= 3)
    worker.signal(signal.SIGTERM)

    def handed_back() -> int:
        entries = outbox.redis.xpending_range("outbox:{e}", "h", "-", "+", 10)
        return len([entry for entry in entries if entry["time_since_delivered"] > 10**9])

    wait_for(lambda: handed_back() >= 2 and handed_back() == outbox.pending("e", "h") - 1)
    assert worker.popen.poll() is None
    (tmp_path / "go").touch()
    assert worker.wait() == 0
    assert outbox.count("done") == 31


TWO = """
import workers
app = workers.App()

@app.handler("e")
async def one() -> None: ...

@app.handler("e")
async def two() -> None: ...
"""


def test_a_bound_from_the_command_line_that_is_too_small_for_the_handlers_is_refused(start: Callable[..., Any]) -> None:
    worker = start(TWO, "--total-concurrency", "1")
    assert worker.wait() == 2
    assert "total_concurrency must be at least 2" in worker.output()
