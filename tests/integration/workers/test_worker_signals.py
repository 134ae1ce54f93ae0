"""Real worker processes that are told to stop: before they began to work, and twice."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outbox.settings import Settings

WAITING = """
import asyncio
from pathlib import Path
import workers
app = workers.App()

@app.handler("e")
async def h() -> None:
    Path("begun").touch()
    while not Path("go").exists():
        await asyncio.sleep(0.01)
"""


@pytest.mark.parametrize("server", ["database_url", "redis_url"])
def test_a_worker_that_still_waits_for_a_server_ends_when_it_is_told(
    server: str, outbox: Any, settings: Settings, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    nowhere = {"database_url": "postgresql://127.0.0.1:1/none", "redis_url": "redis://127.0.0.1:1/0"}
    away = settings.model_copy(update={server: type(settings.redis_url)(nowhere[server])})
    worker = start(WAITING, away=away)
    wait_for(lambda: "server.away" in worker.output())
    worker.signal(signal.SIGTERM)
    assert worker.wait(timeout=15) == 0
    assert "Traceback" not in worker.output()
    assert outbox.one("SELECT count(*) FROM outbox.handler") == 0


STARTING = """
import asyncio, time
from contextlib import asynccontextmanager
from pathlib import Path
import workers

def import_slowly():
    Path("importing").touch()
    time.sleep(60)

@asynccontextmanager
async def lifespan(app: workers.App):
    Path("entering").touch()
    try:
        await asyncio.sleep(60)
        yield
    finally:
        Path("left").touch()

app = workers.App(lifespan=lifespan)

@app.handler("e")
async def h() -> None: ...
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", ["importing", "entering"])
def test_a_worker_that_is_told_to_stop_while_it_imports_its_app_or_enters_the_lifespan_ends_well(
    where: str, number: signal.Signals, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    worker = start(STARTING + ("import_slowly()\n" if where == "importing" else ""))
    wait_for((tmp_path / where).exists)
    worker.signal(number)
    assert worker.wait(timeout=15) == 0
    assert (tmp_path / "left").exists() == (where == "entering")
    assert "Traceback" not in worker.output()
    assert "worker.started" not in worker.output()


def test_a_second_signal_hands_back_at_once_what_the_first_lets_end(
    outbox: Any, start: Callable[..., Any], wait_for: Any, tmp_path: Path
) -> None:
    outbox.attach("h", "e")
    outbox.publish("e", {})
    worker = start(WAITING)
    wait_for((tmp_path / "begun").exists)
    # Two different ones: two of the same may arrive as one.
    worker.signal(signal.SIGTERM)
    worker.signal(signal.SIGINT)
    # Long before the 30 s that the first one gave the run.
    assert worker.wait(timeout=15) == 0
    (entry,) = outbox.redis.xpending_range("outbox:{e}", "h", "-", "+", 10)
    assert entry["time_since_delivered"] > 10**9
    assert outbox.states() == {}
    (tmp_path / "go").touch()
    start(WAITING)
    wait_for(lambda: outbox.count("done") == 1)
    assert outbox.one("SELECT max(attempts) FROM outbox.delivery") == 1
