"""`outbox.add`, `add_many` and `insert` on real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Connection, Engine, ForeignKey, create_engine, func, select
from sqlalchemy import event as hooks
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, scoped_session, sessionmaker

import outbox
from console.servers import Postgres
from outbox import admin, migrations, schema, testing


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)


class Parent(Base):
    __tablename__ = "parents"
    id: Mapped[int] = mapped_column(primary_key=True)
    children: Mapped[list[Child]] = relationship(cascade="all, delete-orphan", back_populates="parent")


class Child(Base):
    __tablename__ = "children"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int] = mapped_column(ForeignKey("parents.id"))
    parent: Mapped[Parent] = relationship(back_populates="children")


def driver_url(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(driver_url(database_url))
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def stored(engine: Engine) -> list[outbox.Event]:
    with engine.connect() as connection:
        return testing.added(connection, committed=True)


def names(engine: Engine) -> list[str]:
    return [event.name for event in stored(engine)]


def statements(engine: Engine) -> list[str]:
    seen: list[str] = []

    @hooks.listens_for(engine, "before_cursor_execute")
    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    return seen


def test_an_event_commits_with_the_business_data_and_is_usable_afterwards(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(User(email="a@example.org"))
        event = outbox.add(session, "send_email", user_id=7, template="welcome", _key="user-7", _headers={"a": "b"})
        session.commit()
    assert (event.name, event.key, event.headers["a"]) == ("send_email", "user-7", "b")
    assert event.payload == {"user_id": 7, "template": "welcome"}
    [row] = stored(engine)
    assert (row.id, row.name, row.key, row.payload_json, row.headers) == (
        event.id,
        "send_email",
        "user-7",
        event.payload_json,
        {"a": "b"},
    )
    assert row.created_at is not None


def test_add_sends_nothing_and_one_flush_writes_all_events_with_one_statement(engine: Engine) -> None:
    with Session(engine) as session:
        seen = statements(engine)
        for number in range(5):
            outbox.add(session, "counted", number=number)
        assert seen == []
        session.flush()
        assert len(seen) == 1
        assert "RETURNING" not in seen[0]
        session.commit()
        assert len(seen) == 1
    assert [event.payload["number"] for event in stored(engine)] == [0, 1, 2, 3, 4]


def test_payload_keys_may_be_called_like_parameters(engine: Engine) -> None:
    payload: dict[str, Any] = {"session": 1, "name": 2, "self": 3, "name_or_model": 4, "key": 5, "": 6}
    with Session(engine) as session, session.begin():
        outbox.add(session, "odd", **payload)
    assert stored(engine)[0].payload == payload


def test_a_rollback_leaves_no_event(engine: Engine) -> None:
    with Session(engine) as session:
        outbox.add(session, "pending")
        session.rollback()
        outbox.add(session, "flushed")
        session.flush()
        session.rollback()
        outbox.add(session, "kept")
        session.commit()
    assert names(engine) == ["kept"]


def test_a_savepoint_takes_its_events_with_it_and_no_others(engine: Engine) -> None:
    with Session(engine) as session:
        outbox.add(session, "before")
        with session.begin_nested() as nested:
            outbox.add(session, "pending_inside")
            nested.rollback()
        with session.begin_nested() as nested:
            outbox.add(session, "flushed_inside")
            session.flush()
            with session.begin_nested():
                outbox.add(session, "deeper")
            nested.rollback()
        with session.begin_nested():
            outbox.add(session, "released")
        outbox.add(session, "after")
        session.commit()
    assert names(engine) == ["before", "released", "after"]


def test_a_failed_flush_leaves_nothing_behind_for_the_next_one(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(User(email="same"))
        session.commit()
        outbox.add(session, "ghost")
        session.add(User(email="same"))
        with pytest.raises(IntegrityError):
            session.flush()
        session.rollback()
        session.add(User(email="other"))
        session.commit()
        outbox.add(session, "kept")
        session.commit()
    assert names(engine) == ["kept"]


def test_an_event_refused_by_the_database_fails_the_transaction_and_not_the_session(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE outbox.event ADD CHECK (name <> 'refused')")
    with Session(engine) as session:
        session.add(User(email="a"))
        outbox.add(session, "refused")
        with pytest.raises(IntegrityError):
            session.commit()
        session.rollback()
        outbox.add(session, "kept")
        session.commit()
        assert session.scalar(select(func.count()).select_from(User)) == 0
    assert names(engine) == ["kept"]


@pytest.mark.parametrize("forget", [Session.expunge_all, Session.close])
def test_a_session_that_forgets_its_objects_forgets_its_events(
    engine: Engine, forget: Callable[[Session], None]
) -> None:
    with Session(engine) as session:
        outbox.add(session, "forgotten")
        forget(session)
        outbox.add(session, "kept")
        session.commit()
    assert names(engine) == ["kept"]


def test_a_flush_that_drops_orphans_still_writes_the_event(engine: Engine) -> None:
    with Session(engine) as session:
        parent = Parent()
        child = Child(parent=parent)
        session.add(child)
        session.expunge(parent)
        parent.children.remove(child)
        outbox.add(session, "kept")
        session.flush()
        assert [event.name for event in testing.added(session)] == ["kept"]
        session.commit()
    assert names(engine) == ["kept"]


def test_events_added_while_a_flush_runs_are_written_by_the_commit(engine: Engine) -> None:
    with Session(engine) as session:

        @hooks.listens_for(session, "before_flush")
        def before(*_: object) -> None:
            if any(isinstance(each, User) for each in session.new):
                outbox.add(session, "before_flush")

        @hooks.listens_for(session, "after_flush")
        def after(*_: object) -> None:
            if any(isinstance(each, User) for each in session.new):
                outbox.add(session, "after_flush")

        outbox.add(session, "first")
        session.add(User(email="a"))
        session.commit()
    assert names(engine) == ["first", "before_flush", "after_flush"]


def test_autoflush_writes_the_event_before_the_session_s_own_query(engine: Engine) -> None:
    with Session(engine) as session:
        outbox.add(session, "seen")
        assert session.scalars(select(User)).all() == []
        assert not session.new
        assert [event.name for event in testing.added(session)] == ["seen"]


def test_the_session_is_dirty_until_the_flush_and_reads_nothing_back(engine: Engine) -> None:
    with Session(engine) as session:
        outbox.add(session, "one")
        assert session.new
        seen = statements(engine)
        session.commit()
        session.expire_all()
        session.add(User(email="a"))
        session.commit()
        assert not any("SELECT" in each for each in seen)


def test_two_phase_commit_works_while_the_relay_is_awake(scratch: Path) -> None:
    with Postgres(scratch / "two-phase", durable=False, options={"max_prepared_transactions": "5"}) as server:
        migrations.apply(server.url())
        engine = create_engine(driver_url(server.url()))
        with Session(engine, twophase=True) as session:
            outbox.add(session, "prepared")
            session.commit()
        assert names(engine) == ["prepared"]
        with engine.connect() as connection:
            forgotten = connection.begin_twophase("forgotten")
            event = outbox.add(connection, "prepared")
            forgotten.prepare()
            (wait,) = admin.story(server.url(), event.id).waits
            assert (wait.code, "the prepared transaction forgotten for " in wait.text) == ("open_transaction", True)
            forgotten.rollback()
        engine.dispose()


def test_a_session_joined_to_an_outer_transaction_writes_into_it(engine: Engine) -> None:
    with engine.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            outbox.add(session, "inner")
            session.commit()
            outbox.add(session, "rolled_back")
            session.flush()
            session.rollback()
            assert [event.name for event in testing.added(session)] == ["inner"]
        outer.rollback()
    assert names(engine) == []


def test_a_session_with_several_binds_needs_one_for_the_outbox(engine: Engine) -> None:
    with Session(binds={User: engine}) as session, pytest.raises(outbox.ConfigurationError, match=r"schema\.event"):
        outbox.add(session, "homeless")
    with Session(binds={User: engine, schema.event: engine}) as session:
        outbox.add(session, "housed")
        session.commit()
    assert names(engine) == ["housed"]


def test_a_database_without_the_schema_says_how_to_get_it(empty_database_url: str) -> None:
    engine = create_engine(driver_url(empty_database_url))
    with Session(engine) as session:
        outbox.add(session, "early")
        with pytest.raises(outbox.SchemaError, match="outbox migrate"):
            session.commit()
    engine.dispose()


def test_a_scoped_session_works_like_its_session(engine: Engine) -> None:
    session = scoped_session(sessionmaker(engine))
    outbox.add(session, "scoped")
    session.commit()
    session.remove()
    assert names(engine) == ["scoped"]


def test_a_core_connection_writes_at_once(engine: Engine) -> None:
    with engine.begin() as connection:
        event = outbox.add(connection, "core", number=1)
        [row] = connection.execute(select(schema.event.c.id, schema.event.c.payload)).all()
        assert row == (event.id, {"number": 1})


def test_insert_is_a_statement_for_everything_else(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(outbox.insert("stated", text="ü\\u0000", _key="k", _headers={"a": "ü"}))
    with Session(engine) as session:
        session.execute(outbox.insert("stated", none=None))
        session.commit()
    first, second = stored(engine)
    assert (first.payload, first.key, first.headers) == ({"text": "ü\\u0000"}, "k", {"a": "ü"})
    assert (second.payload, second.key, second.headers) == ({"none": None}, None, {})


def test_add_many_is_one_batch_in_order(engine: Engine) -> None:
    with Session(engine) as session:
        seen = statements(engine)
        events = outbox.add_many(
            session, "remind", ({"user_id": number} for number in range(100)), _key=lambda each: f"u{each['user_id']}"
        )
        assert outbox.add_many(session, "remind", []) == []
        session.commit()
        assert len(seen) == 1
    assert [(each.id, each.key, each.payload["user_id"]) for each in stored(engine)] == [
        (event.id, f"u{number}", number) for number, event in enumerate(events)
    ]


def test_add_many_adds_none_when_one_is_refused(engine: Engine) -> None:
    with Session(engine) as session:
        with pytest.raises(outbox.PayloadError):
            outbox.add_many(session, "remind", [{"a": 1}, {"a": object()}])
        session.commit()
    assert names(engine) == []


def test_a_refused_payload_leaves_the_session_usable(engine: Engine) -> None:
    with Session(engine) as session:
        user = User(email="a")
        session.add(user)
        for bad in (float("nan"), "\0", "\ud800", user, b"", {1: 2}):
            with pytest.raises(outbox.PayloadError):
                outbox.add(session, "bad", value=bad)
        outbox.add(session, "good")
        session.commit()
    assert names(engine) == ["good"]


TRICKY: dict[str, Any] = {
    "z_first": 1e16,
    "a_second": -0.0,
    "big": 2**200,
    "text": 'ü€😀"\\\u2028\x01\\u0000',
    "empty": {"": [], "n": None},
    "nested": [[{"deep": [1.5, True, False]}]],
}


def test_postgresql_keeps_exactly_what_was_added(engine: Engine) -> None:
    with Session(engine) as session:
        event = outbox.add(session, "tricky", **TRICKY)
        session.commit()
    [row] = stored(engine)
    assert row.payload_json == event.payload_json
    assert row.payload == TRICKY
    assert list(row.payload) == list(TRICKY)
    assert str(row.payload["a_second"]) == "-0.0"


def notified(database_url: str, engine: Engine) -> bool:
    with psycopg.connect(database_url, autocommit=True) as listener:
        received: list[psycopg.Notify] = []
        listener.add_notify_handler(received.append)
        listener.execute("LISTEN outbox")
        with Session(engine) as session:
            outbox.add(session, "ring")
            session.commit()
        # The reply to this comes after every notification that was sent before.
        listener.execute("SELECT 1")
        return bool(received)


def test_the_trigger_notifies_only_while_the_relay_sleeps(database_url: str, engine: Engine) -> None:
    assert not notified(database_url, engine)
    with psycopg.connect(database_url, autocommit=True) as relay:
        relay.execute("SELECT setval('outbox.asleep', extract(epoch FROM clock_timestamp())::bigint + 60)")
        assert notified(database_url, engine)
        relay.execute("SELECT setval('outbox.asleep', extract(epoch FROM clock_timestamp())::bigint - 1)")
        assert not notified(database_url, engine)


def test_a_writer_role_needs_no_right_to_read(database_url: str, engine: Engine) -> None:
    writer = f"writer_{uuid4().hex[:12]}"
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {writer} LOGIN")  # type: ignore[call-overload]
    try:
        with psycopg.connect(database_url, autocommit=True) as admin:
            for grant in writer_grants(writer):
                admin.execute(grant)  # type: ignore[call-overload]
            admin.execute("SELECT setval('outbox.asleep', extract(epoch FROM clock_timestamp())::bigint + 60)")
        restricted = create_engine(driver_url(database_url).replace("postgres@", f"{writer}@"))
        with restricted.begin() as connection:
            assert connection.exec_driver_sql("SELECT current_user").scalar() == writer
            outbox.add(connection, "core")
            connection.execute(outbox.insert("statement"))
        with Session(restricted) as session:
            outbox.add(session, "orm")
            outbox.add_many(session, "many", [{}, {}])
            session.commit()
        restricted.dispose()
        assert names(engine) == ["core", "statement", "orm", "many", "many"]
    finally:
        with psycopg.connect(database_url, autocommit=True) as admin:
            admin.execute(f"DROP OWNED BY {writer}")  # type: ignore[call-overload]
            admin.execute(f"DROP ROLE {writer}")  # type: ignore[call-overload]


def writer_grants(writer: str) -> list[str]:
    text = (files(migrations) / "roles.sql").read_text()
    lines = [line for line in text.splitlines() if line.startswith("GRANT") and "{writer}" in line]
    assert lines
    return [line.replace("{schema}", "outbox").replace("{writer}", writer) for line in lines]


def test_asyncio_sessions_work_the_same(database_url: str, engine: Engine) -> None:
    async def run() -> None:
        engine = create_async_engine(driver_url(database_url))
        async with AsyncSession(engine) as session:
            session.add(User(email="a"))
            event = outbox.add(session, "committed", number=1)
            await session.commit()
            assert event.payload == {"number": 1}
            async with session.begin_nested() as nested:
                outbox.add(session, "ghost")
                await nested.rollback()
            outbox.add(session, "flushed")
            await session.flush()
            assert [each.name for each in await session.run_sync(testing.added)] == ["flushed"]
            await session.commit()
            outbox.add(session, "rolled_back")
            await session.rollback()
        scoped = async_scoped_session(lambda: AsyncSession(engine), asyncio.current_task)
        outbox.add(scoped, "scoped")
        await scoped.commit()
        await scoped.remove()
        async with engine.begin() as connection:
            with pytest.raises(outbox.TargetError, match=r"outbox\.insert"):
                outbox.add(connection, "refused")
            await connection.execute(outbox.insert("stated"))
            await connection.run_sync(outbox.add_many, "many", [{}, {}])
        await engine.dispose()

    asyncio.run(run())
    assert names(engine) == ["committed", "flushed", "scoped", "stated", "many", "many"]


def test_the_test_helpers_find_pending_and_written_events(engine: Engine) -> None:
    with Session(engine) as session:
        outbox.add(session, "mail", user_id=1, extra=True)
        session.flush()
        outbox.add(session, "mail", user_id=2)
        assert [each.payload["user_id"] for each in testing.added(session)] == [1, 2]
        assert session.new, "looking flushes nothing"
        assert testing.assert_added(session, "mail", user_id=1).payload["extra"] is True
        for name, payload in (("mail", {}), ("mail", {"user_id": 3}), ("other", {}), ("mail", {"missing": None})):
            with pytest.raises(AssertionError, match="added in this transaction:\n  mail "):
                testing.assert_added(session, name, **payload)


def test_the_test_helpers_say_what_was_added_instead(engine: Engine) -> None:
    with Session(engine) as session:
        with pytest.raises(AssertionError) as failure:
            testing.assert_added(session, "mail", user_id=1)
        assert str(failure.value) == (
            "expected one event 'mail' with {'user_id': 1}, found 0; added in this transaction: nothing"
        )
        outbox.add(session, "mail", user_id=2, text="x" * 1000)
        session.flush()
        outbox.add_many(session, "ping", [{}] * 30)
        with pytest.raises(AssertionError) as failure:
            testing.assert_added(session, "mail", user_id=1)
        head, mail, *pings, rest = str(failure.value).splitlines()
        assert head == "expected one event 'mail' with {'user_id': 1}, found 0; added in this transaction:"
        assert mail.startswith('  mail {"user_id":2,"text":"xxx')
        assert (len(mail), mail[-1]) == (207, "…")
        assert (len(pings), set(pings), rest) == (19, {"  ping {}"}, "  … and 11 more")


def test_an_event_that_must_not_be_there_is_named(engine: Engine) -> None:
    with Session(engine) as session:
        outbox.add(session, "mail", user_id=1)
        testing.assert_not_added(session, "other")
        testing.assert_not_added(session, "mail", user_id=2)
        with pytest.raises(AssertionError, match=r"expected no event 'mail', found 1;[^}]*\n  mail {\"user_id\":1}"):
            testing.assert_not_added(session, "mail")


def test_asserted_values_are_given_as_they_are_added(engine: Engine) -> None:
    values: dict[str, Any] = {"at": datetime(2026, 1, 2, tzinfo=UTC), "id": uuid4(), "cents": Decimal("1.10")}
    with Session(engine) as session:
        event = outbox.add(session, "mail", **values)
        assert testing.assert_added(session, "mail", **values).id == event.id
        testing.assert_not_added(session, "mail", cents=Decimal("1.11"))


def test_asynchronous_sessions_and_connections_are_asked_by_awaiting(database_url: str) -> None:
    async def run() -> None:
        engine = create_async_engine(driver_url(database_url))
        async with AsyncSession(engine) as session:
            outbox.add(session, "written", n=1)
            await session.flush()
            outbox.add(session, "waiting", n=2)
            assert [each.name for each in await testing.added(session)] == ["written", "waiting"]
            assert (await testing.assert_added(session, "waiting", n=2)).payload == {"n": 2}
            await testing.assert_not_added(session, "waiting", n=3)
            with pytest.raises(AssertionError, match="written"):
                await testing.assert_not_added(session, "written")
        scoped = async_scoped_session(lambda: AsyncSession(engine), asyncio.current_task)
        outbox.add(scoped, "scoped")
        await testing.assert_added(scoped, "scoped")
        await scoped.remove()
        async with engine.connect() as connection:
            await connection.execute(outbox.insert("stated"))
            await testing.assert_added(connection, "stated")
        await engine.dispose()

    asyncio.run(run())


def test_a_bind_given_by_a_custom_session_is_used(engine: Engine) -> None:
    class Routed(Session):
        def get_bind(self, *_: Any, **__: Any) -> Engine | Connection:
            return engine

    with Routed() as session:
        outbox.add(session, "routed")
        session.commit()
    assert names(engine) == ["routed"]
