"""The shop's database: an ordinary SQLAlchemy engine and session, nothing of it special to the outbox."""

import os
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

engine = create_async_engine(make_url(os.environ["OUTBOX_DATABASE_URL"]).set(drivername="postgresql+psycopg"))
new_session = async_sessionmaker(engine, expire_on_commit=False)


async def get_session() -> AsyncIterator[AsyncSession]:
    """One session per request; what was not committed is rolled back."""
    async with new_session() as session:
        yield session


SessionDep = Annotated[AsyncSession, Depends(get_session)]
