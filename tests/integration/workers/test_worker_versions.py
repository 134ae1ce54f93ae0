"""Real worker processes of two versions of one app, as while it is deployed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

OLDER = """
import workers
app = workers.App(backoff=0.1)

@app.handler("e", max_attempts=1000)
async def h(n: int) -> None: ...
"""

NEWER = (
    OLDER.replace("n: int", "n: int | str")
    + """
@app.handler("f")
async def later() -> None: ...
"""
)


def test_what_only_the_newer_version_understands_waits_for_it_while_the_older_one_works(
    outbox: Any, start: Callable[..., Any], wait_for: Any
) -> None:
    outbox.attach("h", "e")
    older = start(OLDER)
    wait_for(older.started)
    outbox.publish("e", {"n": 1}, {"n": "two"})
    wait_for(lambda: outbox.one("SELECT attempts > 1 FROM outbox.delivery WHERE state = 'retrying'"))
    assert outbox.count("done") == 1
    newer = start(NEWER)
    wait_for(newer.started)
    outbox.attach("later", "f")
    outbox.publish("e", {"n": 3}, {"n": "four"})
    outbox.publish("f", {})
    wait_for(lambda: outbox.count("done") == 5)
    older.signal(signal.SIGTERM)
    assert older.wait() == 0
    assert outbox.count("dead") == 0
