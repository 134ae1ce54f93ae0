"""The event's INSERT is the last statement of its flush (I4)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, ForeignKey, create_engine, text
from sqlalchemy import event as hooks
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

import outbox
from outbox import testing


class Base(DeclarativeBase):
    pass


class AAccount(Base):
    """Sorts before ours."""

    __tablename__ = "a_account"
    id: Mapped[int] = mapped_column(primary_key=True)
    count: Mapped[int] = mapped_column(default=0)


class ZAccount(Base):
    """Sorts after ours, and has relations."""

    __tablename__ = "z_account"
    id: Mapped[int] = mapped_column(primary_key=True)
    count: Mapped[int] = mapped_column(default=0)
    lines: Mapped[list[Line]] = relationship(cascade="all, delete-orphan")


class Line(Base):
    __tablename__ = "line"
    id: Mapped[int] = mapped_column(primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("z_account.id"))


class Node(Base):
    """Refers to itself: SQLAlchemy sorts its rows one by one."""

    __tablename__ = "node"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("node.id"))
    children: Mapped[list[Node]] = relationship()


# The names by which SQLAlchemy sorts unrelated mappers.
AAccount.__module__, ZAccount.__module__ = "aaa", "zzz"


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://", 1))
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([AAccount(id=1), ZAccount(id=1, lines=[Line(id=1), Line(id=2)]), ZAccount(id=2), Node(id=1)])
        session.commit()
    yield engine
    engine.dispose()


def statements(engine: Engine) -> list[str]:
    seen: list[str] = []

    @hooks.listens_for(engine, "before_cursor_execute")
    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(" ".join(statement.split()[:3]))

    return seen


def test_after_inserts_updates_and_deletes_of_models_before_and_after_ours(engine: Engine) -> None:
    with Session(engine) as session:
        a, z, gone = session.get_one(AAccount, 1), session.get_one(ZAccount, 1), session.get_one(ZAccount, 2)
        node = session.get_one(Node, 1)
        assert (len(z.lines), len(gone.lines), len(node.children)) == (2, 0, 0)
        seen = statements(engine)
        outbox.add(session, "first_added")
        a.count += 1
        z.count += 1
        z.lines.pop()
        z.lines.append(Line(id=3))
        session.delete(gone)
        node.children.append(Node(id=2, children=[Node(id=3)]))
        session.add_all([AAccount(id=9), ZAccount(id=9)])
        session.commit()
    assert len(seen) >= 8
    assert [each for each in seen if "outbox.event" in each] == seen[-1:]


def test_after_what_other_listeners_write_in_the_same_flush(engine: Engine) -> None:
    with Session(engine) as session:

        @hooks.listens_for(session, "after_flush")
        def audit(session: Session, _context: Any) -> None:
            session.execute(text("UPDATE z_account SET count = count + 1"))

        seen = statements(engine)
        outbox.add(session, "last")
        session.add(AAccount(id=9))
        session.commit()
    assert seen[-2:] == ["UPDATE z_account SET", "INSERT INTO outbox.event"]


def test_events_of_one_key_get_their_place_under_its_row_lock(engine: Engine, database_url: str) -> None:
    reached = threading.Event()

    def bump() -> None:
        with Session(engine) as session:
            account = session.get_one(ZAccount, 1)
            account.count += 1
            outbox.add(session, "second", _key="z-1")
            reached.set()
            session.commit()

    with Session(engine) as session:
        session.execute(text("UPDATE z_account SET count = 1 WHERE id = 1"))
        other = threading.Thread(target=bump)
        other.start()
        assert reached.wait(10)
        with psycopg.connect(database_url, autocommit=True) as observer:
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            while observer.execute(waiting).fetchone() == (0,):
                assert other.is_alive()
        outbox.add(session, "first", _key="z-1")
        session.commit()
    other.join(10)
    with engine.connect() as connection:
        assert [event.name for event in testing.added(connection, committed=True)] == ["first", "second"]
