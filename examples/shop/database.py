"""The shop's database: an ordinary SQLAlchemy engine and session, nothing of it special to the outbox."""

import os
from collections.abc import AsyncIterator
from functools import cache
from typing import Annotated

from fastapi import Depends
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine


@cache
def engine() -> AsyncEngine:
    """The engine, made when it is first used: a test says before where its database is."""
    return create_async_engine(make_url(os.environ["OUTBOX_DATABASE_URL"]).set(drivername="postgresql+psycopg"))


async def get_session() -> AsyncIterator[AsyncSession]:
    """One session per request; what was not committed is rolled back."""
    async with AsyncSession(engine(), expire_on_commit=False) as session:
        yield session


SessionDep = Annotated[AsyncSession, Depends(get_session)]
