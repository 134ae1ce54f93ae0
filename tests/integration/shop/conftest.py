"""The example shop in the tests' own process, on servers that `outbox_testing` brings."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from shop import api, database
from sqlalchemy.ext.asyncio import AsyncSession

from outbox.settings import Settings


@pytest.fixture
def anyio_backend() -> str:
    """What runs `async def` tests."""
    return "asyncio"


@pytest.fixture
async def client(outbox_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the shop's API on a database of this test's own."""
    monkeypatch.setenv("OUTBOX_DATABASE_URL", outbox_settings.libpq_url())
    database.engine.cache_clear()
    transport = httpx.ASGITransport(api.app)
    async with api.lifespan(api.app), httpx.AsyncClient(transport=transport, base_url="http://shop") as shop:
        yield shop


@pytest.fixture
async def session(client: httpx.AsyncClient) -> AsyncIterator[AsyncSession]:
    """A session on the shop's database, which looks at it anew with each statement."""
    async with AsyncSession(database.engine()) as opened:
        await opened.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        yield opened
