"""COMMIT without an answer: the business row and its event agree, whether the request or the reply was lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from waiting import wait_for

import outbox


class Base(DeclarativeBase):
    pass


class Sale(Base):
    __tablename__ = "sale"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def writer(database_proxy: Any) -> Iterator[Session]:
    """A session through the proxy, with a row and its event flushed and not committed."""
    _, url = database_proxy
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Sale(id=1))
        outbox.add(session, "sold", sale_id=1)
        session.flush()
        yield session
    engine.dispose()


def commit(session: Session) -> tuple[threading.Thread, list[BaseException]]:
    """COMMIT in a thread, and what came of it."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            session.commit()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, failures


def found(url: str) -> tuple[int, int]:
    """How many rows and how many events there are."""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT (SELECT count(*) FROM sale), (SELECT count(*) FROM outbox.event WHERE name = 'sold')"
        ).fetchone()
    assert row is not None
    return row[0], row[1]


def in_transaction(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND xact_start IS NOT NULL AND backend_type = 'client backend'"
        ).fetchone()
    assert row is not None
    return int(row[0])


def test_when_the_reply_to_commit_is_lost_row_and_event_are_both_there(
    writer: Session, database_url: str, database_proxy: Any
) -> None:
    proxy, _ = database_proxy
    proxy.mute()
    thread, failures = commit(writer)
    wait_for(lambda: found(database_url) == (1, 1))
    proxy.cut()
    thread.join(30)
    [failure] = failures
    assert isinstance(failure, sqlalchemy.exc.OperationalError)
    assert found(database_url) == (1, 1)


def test_when_commit_itself_is_lost_neither_row_nor_event_is_there(
    writer: Session, database_url: str, database_proxy: Any
) -> None:
    proxy, _ = database_proxy
    proxy.deafen()
    thread, failures = commit(writer)
    assert in_transaction(database_url) == 1
    proxy.cut()
    thread.join(30)
    [failure] = failures
    assert isinstance(failure, sqlalchemy.exc.OperationalError)
    wait_for(lambda: in_transaction(database_url) == 0)
    assert found(database_url) == (0, 0)
