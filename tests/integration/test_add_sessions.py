"""`outbox.add` with every kind of session, hook and mapping: what commits is there, once and last; the rest is not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, ClassVar

import psycopg
import pytest
from sqlalchemy import Engine, ForeignKey, create_engine, text
from sqlalchemy import event as hooks
from sqlalchemy.exc import IntegrityError, InternalError, InvalidRequestError, ResourceClosedError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, make_transient, mapped_column, scoped_session, sessionmaker

import outbox
from outbox import migrations, schema, testing
from outbox.payload import MAX_BYTES


@dataclass
class Many:
    number: int
    __event__ = "many"


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    count: Mapped[int] = mapped_column(default=0)


class Zebra(Base):
    __tablename__ = "zebra"
    id: Mapped[int] = mapped_column(primary_key=True)
    count: Mapped[int] = mapped_column(default=0)


# The names by which SQLAlchemy sorts unrelated mappers: before and after ours.
Account.__module__, Zebra.__module__ = "aaa", "zzz"


class Person(Base):
    """Joined-table inheritance: two statements per row, and an UPDATE of either table."""

    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str] = mapped_column(default="")
    __mapper_args__: ClassVar[dict[str, str]] = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Engineer(Person):
    __tablename__ = "engineer"
    id: Mapped[int] = mapped_column(ForeignKey("person.id"), primary_key=True)
    tool: Mapped[str] = mapped_column(default="")
    __mapper_args__: ClassVar[dict[str, str]] = {"polymorphic_identity": "engineer"}


def driver_url(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(driver_url(database_url))
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def names(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return [event.name for event in testing.added(connection, committed=True)]


def statements(engine: Engine) -> list[str]:
    seen: list[str] = []

    @hooks.listens_for(engine, "before_cursor_execute")
    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(" ".join(statement.split()[:3]))

    return seen


# How a session is made ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expire", [True, False])
@pytest.mark.parametrize("autoflush", [True, False])
def test_a_sessionmaker_s_transaction_commits_its_events(engine: Engine, autoflush: bool, expire: bool) -> None:
    make = sessionmaker(engine, autoflush=autoflush, expire_on_commit=expire)
    with make.begin() as session:
        account = Account()
        session.add(account)
        event = outbox.add(session, "first", _key="k", value=[1])
        session.flush()
        outbox.add(session, "second", account=account.id)
    assert names(engine) == ["first", "second"]
    assert (event.name, event.key, event.payload) == ("first", "k", {"value": [1]})

    def fail() -> None:
        with make.begin() as session:
            outbox.add(session, "ghost")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert names(engine) == ["first", "second"]


def test_without_autoflush_events_wait_for_the_commit_and_are_last(engine: Engine) -> None:
    with Session(engine, autoflush=False) as session:
        account = Account(id=1)
        session.add(account)
        session.commit()
        seen = statements(engine)
        outbox.add(session, "one")
        account.count = session.query(Account).count()
        with session.no_autoflush:
            outbox.add(session, "two")
        session.commit()
    assert [each for each in seen if not each.startswith("SELECT")] == [
        "UPDATE account SET",
        "INSERT INTO outbox.event",
    ]
    assert names(engine) == ["one", "two"]


def test_events_of_one_session_go_with_each_of_its_transactions(engine: Engine) -> None:
    with Session(engine) as session:
        outbox.add(session, "one")
        session.commit()
        outbox.add(session, "two")
        session.rollback()
        outbox.add(session, "three")
        session.commit()
        session.commit()
    assert names(engine) == ["one", "three"]


def test_a_session_with_autobegin_turned_off_takes_events_after_begin(engine: Engine) -> None:
    with Session(engine, autobegin=False) as session, session.begin():
        outbox.add(session, "begun")
    assert names(engine) == ["begun"]


def test_a_session_that_was_closed_for_good_refuses_to_write(engine: Engine) -> None:
    session = Session(engine, close_resets_only=False)
    session.close()
    with pytest.raises(InvalidRequestError, match="permanently closed"):
        outbox.add(session, "late")
    assert names(engine) == []


def test_events_of_several_engines_go_to_the_one_that_has_the_outbox(engine: Engine, postgres_url: str) -> None:
    other = create_engine(driver_url(postgres_url))
    with Session(binds={Account: engine, schema.event: engine, Person: other}) as session:
        session.add(Account(id=1))
        outbox.add(session, "one")
        session.commit()
        assert session.get_one(Account, 1).count == 0
        outbox.add(session, "flushed")
        session.flush()
        assert [event.name for event in testing.added(session)] == ["flushed"]
        session.rollback()
    with Session(other, binds={outbox.metadata.tables["outbox.event"]: engine}) as session:
        outbox.add(session, "two")
        session.commit()
    assert names(engine) == ["one", "two"]
    other.dispose()


def test_a_read_only_transaction_fails_loudly_and_the_session_goes_on(engine: Engine) -> None:
    with Session(engine) as session:
        session.connection(execution_options={"postgresql_readonly": True})
        outbox.add(session, "refused")
        with pytest.raises(InternalError, match="read-only transaction"):
            session.commit()
        session.rollback()
        outbox.add(session, "kept")
        session.commit()
    assert names(engine) == ["kept"]


def test_a_connection_in_autocommit_writes_each_event_at_once(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        outbox.add(connection, "one")
        assert names(engine) == ["one"]
        outbox.add_many(connection, "two", [{}, {}])
    assert names(engine) == ["one", "two", "two"]
    with Session(engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        outbox.add(session, "three")
        session.flush()
        assert names(engine) == ["one", "two", "two", "three"]


def test_an_engine_that_translates_schemas_is_obeyed(engine: Engine, database_url: str) -> None:
    migrations.apply(database_url, "tenant")
    tenant = engine.execution_options(schema_translate_map={"outbox": "tenant"})
    with Session(tenant) as session:
        event = outbox.add(session, "one", text="ü", _key="k", _headers={"a": "b"})
        outbox.add(session, "two")
        session.commit()
    with tenant.begin() as connection:
        outbox.add(connection, "three")
        found = testing.added(connection, committed=True)
    assert [each.name for each in found] == ["one", "two", "three"]
    assert (found[0].payload, found[0].key, found[0].headers) == (event.payload, "k", {"a": "b"})
    assert names(engine) == []


def test_a_closed_connection_takes_no_event(engine: Engine) -> None:
    connection = engine.connect()
    connection.close()
    with pytest.raises(ResourceClosedError):
        outbox.add(connection, "late")


def test_a_database_other_than_postgresql_is_refused_by_name() -> None:
    engine = create_engine("sqlite://")
    with Session(engine) as session:
        outbox.add(session, "elsewhere")
        with pytest.raises(outbox.TargetError, match=r"PostgreSQL.*sqlite"):
            session.commit()
    with engine.connect() as connection, pytest.raises(outbox.TargetError, match="sqlite"):
        outbox.add(connection, "elsewhere")


@pytest.mark.parametrize(
    ("target", "advice"),
    [
        (sessionmaker(), "call it"),
        (async_sessionmaker(), "call it"),
        (Session, "call it"),
        (create_engine("postgresql+psycopg://"), "begin()"),
        (create_async_engine("postgresql+psycopg://"), "begin()"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_makes_sessions_is_no_session_and_the_error_says_so(target: Any, advice: str) -> None:
    with pytest.raises(outbox.TargetError) as caught:
        outbox.add(target, "a")
    assert advice in str(caught.value)


def test_an_async_sessionmaker_s_transaction_commits_its_events(database_url: str, engine: Engine) -> None:
    async def run() -> None:
        engine = create_async_engine(driver_url(database_url))
        make = async_sessionmaker(engine)
        async with make.begin() as session:
            outbox.add(session, "begun")
        async with make() as session:
            outbox.add(session, "forgotten")
            session.expunge_all()
            outbox.add(session, "closed")
            await session.close()
            await session.run_sync(lambda sync: outbox.add(sync, "inside"))
            await asyncio.gather(*(added(session, number) for number in range(3)))
            await session.commit()
        await engine.dispose()

    async def added(session: AsyncSession, number: int) -> None:
        outbox.add(session, f"task{number}")

    asyncio.run(run())
    assert sorted(names(engine)) == ["begun", "inside", "task0", "task1", "task2"]


def test_every_kind_of_target_takes_many_and_executes_the_statement(database_url: str, engine: Engine) -> None:
    made = sessionmaker(engine)

    def fill(target: Any) -> None:
        added = outbox.add_many(target, Many, [Many(1), {"number": 2}], _key=lambda body: "k", _headers={"a": "b"})
        assert [(event.name, event.key, event.headers) for event in added] == [("many", "k", {"a": "b"})] * 2
        target.execute(outbox.insert(Many(3), _key="k"))
        target.commit()

    async def fill_asynchronously() -> None:
        engine = create_async_engine(driver_url(database_url))
        scoped = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
        for target in (AsyncSession(engine), scoped):
            outbox.add_many(target, "many", [{"number": 1}, {"number": 2}], _key="k")
            await target.flush()
            await target.execute(outbox.insert("many", number=3, _key="k"))
            await target.commit()
            await target.close()
        async with engine.begin() as connection:
            with pytest.raises(outbox.TargetError, match="run_sync"):
                outbox.add_many(connection, "many", [{}])  # type: ignore[arg-type]
            await connection.run_sync(outbox.add_many, "many", [{"number": 1}, {"number": 2}], _key="k")
            await connection.execute(outbox.insert("many", number=3, _key="k"))
        await engine.dispose()

    with made() as session, engine.connect() as connection:
        for target in (session, scoped_session(made), connection):
            fill(target)
    asyncio.run(fill_asynchronously())
    with engine.connect() as connection:
        found = testing.added(connection, committed=True)
    assert sorted(event.payload["number"] for event in found) == [1] * 6 + [2] * 6 + [3] * 6
    assert {(event.name, event.key) for event in found} == {("many", "k")}


def test_threads_with_a_session_each_do_not_meet(engine: Engine) -> None:
    def write(number: int) -> None:
        with Session(engine) as session:
            for _ in range(20):
                outbox.add(session, f"t{number}")
                session.flush() if number % 2 else None
            session.rollback() if number == 3 else session.commit()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = names(engine)
    assert {name: found.count(name) for name in found} == {"t0": 20, "t1": 20, "t2": 20}


# Transactions and savepoints ------------------------------------------------------------------------------------------


def test_after_a_savepoint_was_rolled_back_further_events_are_kept(engine: Engine) -> None:
    with Session(engine) as session:
        outbox.add(session, "outer")
        for number in range(3):
            nested = session.begin_nested()
            outbox.add(session, f"ghost{number}")
            deeper = session.begin_nested()
            outbox.add(session, f"ghost{number}b")
            if number == 1:
                session.flush()
            if number == 2:
                deeper.commit()
            nested.rollback()
            outbox.add(session, f"kept{number}")
        session.commit()
    assert names(engine) == ["outer", "kept0", "kept1", "kept2"]


def test_a_failed_flush_in_a_savepoint_takes_only_its_own_events(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Account(id=1))
        outbox.add(session, "before")
        nested = session.begin_nested()
        outbox.add(session, "ghost")
        session.add(Account(id=1))
        with pytest.raises(IntegrityError):
            session.flush()
        nested.rollback()
        outbox.add(session, "after")
        session.commit()
    assert names(engine) == ["before", "after"]


def test_bulk_operations_neither_write_nor_lose_the_events(engine: Engine) -> None:
    with Session(engine) as session:
        outbox.add(session, "one")
        session.bulk_save_objects([Account(id=1)])
        session.bulk_insert_mappings(Account, [{"id": 2}])  # type: ignore[arg-type]
        session.bulk_update_mappings(Account, [{"id": 1, "count": 5}])  # type: ignore[arg-type]
        assert [event.name for event in testing.added(session)] == ["one"]
        session.commit()
    assert names(engine) == ["one"]


def test_an_object_made_transient_or_expunged_beside_it_changes_nothing(engine: Engine) -> None:
    with Session(engine) as session:
        account = Account(id=1)
        session.add(account)
        outbox.add(session, "one")
        session.expunge(account)
        make_transient(account)
        outbox.add(session, "two")
        session.commit()
    assert names(engine) == ["one", "two"]


# Hooks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["before_flush", "after_flush", "after_flush_postexec", "before_commit"])
def test_an_event_added_in_a_session_hook_commits_with_that_transaction(engine: Engine, hook: str) -> None:
    with Session(engine) as session:
        rung = []

        def ring(session: Session, *_: object) -> None:
            if not rung:
                rung.append(outbox.add(session, hook))

        hooks.listen(session, hook, ring)
        session.add(Account(id=1))
        session.commit()
        assert names(engine) == [hook]


@pytest.mark.parametrize("hook", ["after_commit", "after_soft_rollback", "after_begin"])
def test_an_event_added_around_a_transaction_belongs_to_the_one_that_is_committed_next(
    engine: Engine, hook: str
) -> None:
    with Session(engine) as session:
        rung = []

        def ring(session: Session, *_: object) -> None:
            if not rung:
                rung.append(outbox.add(session, hook))

        hooks.listen(session, hook, ring)
        session.add(Account(id=1))
        session.flush()
        session.rollback() if "rollback" in hook else session.commit()
        session.commit()
    assert names(engine) == [hook]


@pytest.mark.filterwarnings("error::sqlalchemy.exc.SAWarning")
@pytest.mark.parametrize("hook", ["before_insert", "after_insert", "before_update", "after_update", "before_delete"])
def test_an_event_added_in_a_mapper_hook_goes_last_in_that_flush(engine: Engine, hook: str) -> None:
    def ring(_mapper: object, _connection: object, target: Any) -> None:
        session = Session.object_session(target)
        assert session is not None
        outbox.add(session, f"{hook}.{target.__tablename__}")

    expected = []
    for kind in (Account, Zebra):
        hooks.listen(kind, hook, ring)
        for beside in ([], ["own"]):
            expected += [*beside, f"{hook}.{kind.__tablename__}"]
            with Session(engine) as session:
                row: Any = kind(id=7)
                for operation in ("insert", "update", "delete"):
                    for name in beside if operation in hook else ():
                        outbox.add(session, name)
                    if operation == "update":
                        row.count = 1
                    else:
                        session.add(row) if operation == "insert" else session.delete(row)
                    session.flush()
                    assert not session.new
                session.commit()
        hooks.remove(kind, hook, ring)
    assert names(engine) == expected


@pytest.mark.parametrize("hook", ["after_insert", "before_update"])
def test_a_mapper_hook_may_write_on_its_connection(engine: Engine, hook: str) -> None:
    def ring(_mapper: object, connection: Any, target: Account) -> None:
        outbox.add(connection, hook, account=target.id)

    hooks.listen(Account, hook, ring)
    try:
        with Session(engine) as session:
            account = Account(id=7)
            session.add(account)
            outbox.add(session, "own")
            session.flush()
            account.count = 1
            session.rollback()
            session.add(Account(id=8))
            session.flush()
            session.get_one(Account, 8).count = 1
            session.commit()
    finally:
        hooks.remove(Account, hook, ring)
    assert names(engine) == [hook]


def test_a_hook_that_fails_takes_the_events_with_it(engine: Engine) -> None:
    with Session(engine) as session:

        @hooks.listens_for(session, "after_flush")
        def fail(*_: object) -> None:
            raise RuntimeError("boom")

        outbox.add(session, "ghost")
        with pytest.raises(RuntimeError, match="boom"):
            session.commit()
        session.rollback()
        hooks.remove(session, "after_flush", fail)
        outbox.add(session, "kept")
        session.commit()
    assert names(engine) == ["kept"]


# What it is added beside ----------------------------------------------------------------------------------------------


def test_after_all_statements_of_joined_tables(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Engineer(id=1))
        session.commit()
        seen = statements(engine)
        outbox.add(session, "one")
        engineer = session.get_one(Engineer, 1)
        outbox.add(session, "two")
        engineer.name, engineer.tool = "ann", "axe"
        session.add(Engineer(id=2))
        session.commit()
    written = [each for each in seen if not each.startswith("SELECT")]
    # The first one goes with the autoflush of the query that loads the engineer.
    assert (written[0], written[-1]) == ("INSERT INTO outbox.event", "INSERT INTO outbox.event")
    assert sorted(written[1:-1]) == [
        "INSERT INTO engineer",
        "INSERT INTO person",
        "UPDATE engineer SET",
        "UPDATE person SET",
    ]
    assert names(engine) == ["one", "two"]


@pytest.mark.parametrize("write", [Session.flush, Session.commit])
def test_an_event_of_exactly_the_limit_is_stored_whole(engine: Engine, write: Callable[[Session], None]) -> None:
    room = MAX_BYTES - len('{"text":""}')
    with Session(engine) as session:
        outbox.add(session, "large", text="x" * room)
        with pytest.raises(outbox.PayloadError, match="262,144"):
            outbox.add(session, "larger", text="x" * (room + 1))
        write(session)
        session.commit()
    with engine.connect() as connection:
        [event] = testing.added(connection, committed=True)
    assert len(event.payload_json) == MAX_BYTES


def test_an_event_name_that_is_an_enum_is_stored_as_its_text(engine: Engine) -> None:
    class Events(StrEnum):
        PAID = "order.paid"

    class Old(str, Enum):  # noqa: UP042
        SENT = "order.sent"

    with Session(engine) as session:
        added = [outbox.add(session, Events.PAID), outbox.add(session, Old.SENT, _key=Old.SENT)]
        added += outbox.add_many(session, Events.PAID, [{}])
        session.execute(outbox.insert(Old.SENT))
        session.commit()
    assert {type(event.name) for event in added} == {type(added[1].key)} == {str}
    assert sorted(names(engine)) == ["order.paid", "order.paid", "order.sent", "order.sent"]


def test_one_id_may_be_added_again_in_the_same_session(engine: Engine) -> None:
    with Session(engine) as session:
        first = outbox.add(session, "one")
        session.flush()
        outbox.add(session, "two", _id=first.id)
        session.flush()
        session.commit()
    assert names(engine) == ["one", "two"]


def test_a_repeatable_read_writer_adds_like_any_other(engine: Engine, database_url: str) -> None:
    with Session(engine.execution_options(isolation_level="REPEATABLE READ")) as session:
        session.execute(text("SELECT count(*) FROM outbox.event"))
        with psycopg.connect(database_url, autocommit=True) as other:
            other.execute("INSERT INTO outbox.event (name, payload) VALUES ('other', '{}')")
        outbox.add(session, "mine")
        session.commit()
    assert names(engine) == ["other", "mine"]
