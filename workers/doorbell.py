"""The doorbell: one blocking read over streams that one command may name, over a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

from redis.exceptions import ResponseError

from outbox.redis import close_asyncio
from workers.link import Redis, Unreachable, command, exchange


class Doorbell:
    """Rings when one of some streams gets an entry. `other` is a client of the same server, to end the wait early."""

    def __init__(self, client: Redis, other: Redis, *, block: float) -> None:
        self._client = client
        self._other = other
        self._block = block
        self._id: int | None = None
        self._armed: set[str] = set()
        self.ring: asyncio.Task[Any] | None = None

    def covers(self, keys: Iterable[str]) -> bool:
        """Whether it waits for all of these. A stream that it waits for rings at its next entry, from whatever id."""
        return self.ring is not None and self._armed.issuperset(keys)

    def arm(self, wished: dict[str, bytes]) -> None:
        """Wait for entries behind these ids, for `block` seconds at the most."""
        self._armed = set(wished)
        self.ring = asyncio.create_task(self._wait(wished))
        self.ring.add_done_callback(_noted)

    def take(self) -> dict[str, list[Any]]:
        """The streams that rang, once the wait is over, each with the entry that rang. Raises what ended it."""
        assert self.ring is not None
        ring, self.ring = self.ring, None
        return {key.decode(): entries[0] for key, entries in ring.result() or ()}

    async def end(self) -> bool:
        """End the wait, so that it can be begun anew with other streams; False when it would not end."""
        assert self.ring is not None
        for _ in range(10):
            if self._id is not None and not self.ring.done():
                await command(self._other, "CLIENT UNBLOCK", self._id)
            await asyncio.wait({self.ring}, timeout=0.01)
            if self.ring.done():
                return True
        return False

    async def close(self) -> None:
        """Wait no more, and leave the server."""
        ring, self.ring = self.ring, None
        if ring is not None:
            ring.cancel()
            # Not `await ring`: its cancellation and our own would look the same.
            await asyncio.wait({ring})
        with contextlib.suppress(*Unreachable):
            await close_asyncio(self._client)

    async def _wait(self, wished: dict[str, bytes]) -> Any:
        if self._id is None:
            self._id = int(await self._client.client_id())
        milliseconds = int(self._block * 1000)
        read: tuple[str | bytes | int, ...] = (
            "XREAD",
            "COUNT",
            1,
            "BLOCK",
            milliseconds,
            "STREAMS",
            *wished,
            *wished.values(),
        )
        [reply] = await exchange(self._client, [read])
        if isinstance(reply, ResponseError):
            raise reply
        return reply


def _noted(ring: asyncio.Task[Any]) -> None:
    """An error of a ring that nobody waits for any more is no news."""
    if not ring.cancelled():
        ring.exception()
