"""What a worker does while there is nothing to do."""

from __future__ import annotations

from typing import Any

import pytest

import workers
from workers import lease

HANDLERS = 30


def test_one_connection_waits_for_all_streams_and_what_others_left_is_asked_of_all_together(
    outbox: Any, work: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[int] = []
    alone: list[Any] = []
    exchange, command = lease.exchange, lease.command

    async def noted_exchange(client: Any, commands: list[Any]) -> list[Any]:
        together.append(sum(words[0] == "XPENDING" for words in commands))
        return await exchange(client, commands)

    async def noted_command(client: Any, *words: Any) -> Any:
        alone.append(words)
        return await command(client, *words)

    app = workers.App()

    async def nothing() -> None: ...

    for number in range(HANDLERS):
        app.handler(f"e{number}", name=f"h{number}")(nothing)
        outbox.attach(f"h{number}", f"e{number}")

    async def scenario(worker: workers.Worker) -> None:
        await until(lambda: outbox.redis.info("clients")["blocked_clients"] == 1)
        # The first round looks at each, for consumers that are to be forgotten, too.
        await until(lambda: len(together) >= 1)
        alone.clear()
        await until(lambda: len(together) >= 4)
        assert outbox.redis.info("clients")["blocked_clients"] <= 1

    monkeypatch.setattr(lease, "exchange", noted_exchange)
    monkeypatch.setattr(lease, "command", noted_command)
    work(app, scenario, lease=1.0, heartbeat=0.25)
    # A main and a catch-up stream each.
    assert set(together) == {2 * HANDLERS}
    assert alone == []
