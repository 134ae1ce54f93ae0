"""Where one event is: asked through sessions, by programs and by command, against rows and real streams."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Iterator
from datetime import UTC
from typing import Any

import psycopg
import pytest
import redis
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import outbox
from console import main
from console.servers import Redis
from outbox import admin
from outbox.admin import Edit, Outcome, Selection
from outbox.admin.statement import statement
from outbox.names import lock_id

Db = psycopg.Connection[Any]


@pytest.fixture
def db(database_url: str) -> Iterator[Db]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def add(db: Db, name: str = "paid") -> uuid.UUID:
    row = db.execute("INSERT INTO outbox.event (name, payload) VALUES (%s, '{}') RETURNING id", [name]).fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


def tick(db: Db, ahead: int = 1) -> int:
    """A published tick that covers everything committed."""
    row = db.execute(
        "INSERT INTO outbox.tick (id, snapshot, count)"
        " SELECT max(id) + %s, pg_current_snapshot(), 1 FROM outbox.tick RETURNING id",
        [ahead],
    ).fetchone()
    assert row is not None
    db.execute("UPDATE outbox.relay SET tick = %s, seq = (SELECT coalesce(max(seq), 0) FROM outbox.event)", [row[0]])
    return int(row[0])


def handle(db: Db, name: str = "h", event: str = "paid") -> None:
    db.execute(
        "INSERT INTO outbox.handler (name, event_name, attached, done_tick, done_seq) VALUES (%s, %s, true, 0, 0)",
        [name, event],
    )
    db.execute("INSERT INTO outbox.worker (name, handlers) VALUES (%s, %s)", [f"w-{name}", [name]])


# The tick ----------------------------------------------------------------------------------------------------------


def test_the_tick_is_the_first_whose_snapshot_sees_the_event_however_many_there_are(database_url: str, db: Db) -> None:
    early = add(db)
    ticks = [tick(db, ahead) for ahead in (1, 1, 7, 100, 5000)]
    with psycopg.connect(database_url) as late:
        row = late.execute("INSERT INTO outbox.event (name, payload) VALUES ('paid', '{}') RETURNING id").fetchone()
        assert row is not None
        middle = add(db)
        ticks += [tick(db, ahead) for ahead in (3, 1, 1)]
        late.commit()
    ticks += [tick(db, ahead) for ahead in (1, 60_000, 1)]
    last = add(db)
    found = {id: admin.story(db, id).position for id in (early, middle, row[0], last)}
    assert {id: position and position.tick for id, position in found.items()} == {
        early: ticks[0],
        middle: ticks[5],
        row[0]: ticks[8],
        last: None,
    }


@pytest.mark.parametrize("analyzed", [False, True])
def test_the_story_reads_little_however_many_events_deliveries_and_ticks_there_are(db: Db, analyzed: bool) -> None:
    db.execute("INSERT INTO outbox.event (name, payload) SELECT 'paid', '{}' FROM generate_series(1, 20000)")
    db.execute(
        "INSERT INTO outbox.tick (id, snapshot, count) SELECT id + n, snapshot, 1"
        "  FROM outbox.tick, generate_series(1, 20000) AS n"
    )
    db.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
        " SELECT id, 'h', created_at, 'done', 1 FROM outbox.event"
    )
    tick(db)
    handle(db)
    if analyzed:
        db.execute("VACUUM ANALYZE")
    row = db.execute("SELECT id FROM outbox.event LIMIT 1").fetchone()
    assert row is not None
    asked = {"id": str(row[0]), "lock": 1, "alive": 30}
    plan = db.execute(b"EXPLAIN (ANALYZE, FORMAT JSON) " + statement("story", "outbox"), asked).fetchone()
    assert plan is not None
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in scans(plan[0][0]["Plan"])) < 500


def scans(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes of a plan that read tables."""
    if "Relation Name" in node:
        yield {**node, "Actual Rows": node["Actual Rows"] + node.get("Rows Removed by Filter", 0)}
    for child in node.get("Plans", []):
        yield from scans(child)


def test_a_copy_for_one_handler_and_a_purged_event_have_the_story_of_their_deliveries(db: Db) -> None:
    handle(db, "h")
    handle(db, "g")
    original, copy, purged = add(db), add(db), add(db)
    tick(db)
    db.execute(
        "UPDATE outbox.event SET name = '(copy)', headers = json_build_object('outbox-copy-of', %s::text)"
        " WHERE id = %s",
        [str(original), copy],
    )
    db.execute("UPDATE outbox.event SET name = '(purged)', payload = 'null' WHERE id = %s", [purged])
    db.execute("INSERT INTO outbox.tombstone (event_id, name) VALUES (%s, 'paid')", [purged])
    db.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " SELECT id, 'h', created_at, CASE name WHEN '(copy)' THEN 'retrying' ELSE 'cancelled' END, 0,"
        "        CASE name WHEN '(copy)' THEN now() END FROM outbox.event WHERE name IN ('(copy)', '(purged)')"
    )
    told = admin.story(db, copy)
    assert (told.name, [each.handler for each in told.handlers]) == ("paid", ["h"])
    assert [wait.code for wait in told.waits] == ["worker"]
    assert f"a copy of {original}" in str(told.moments[0].detail)
    told = admin.story(db, purged)
    assert (told.name, told.state, told.waits) == ("paid", "cancelled", ())
    assert {"purged", "cancelled"} <= {moment.what for moment in told.moments}


def test_replays_tell_who_why_and_what_was_before_and_an_original_names_its_copy(db: Db) -> None:
    handle(db, "h")
    id = add(db)
    db.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts)"
        " SELECT id, 'h', created_at, 'done', 1 FROM outbox.event"
    )
    done = admin.story(db, id).handlers[0].updated_at
    which = Selection(handler="h", ids=(id,))
    reason = "wrong rate" + " and so on" * 100
    admin.replay(db, which, outcome=Outcome.DONE, reason=reason, actor="ann@desk")

    def replays(id: uuid.UUID) -> list[str | None]:
        return [each.detail for each in admin.story(db, id).moments if each.what == "replayed"]

    assert done is not None
    first = f"{f'by ann@desk: {reason}'[:300]}; it was done since {done.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    assert replays(id) == [first]
    assert [each.what for each in admin.story(db, id).moments if each.handler][-2:] == ["replayed", "due"]
    # It dies, and dies again: a letter tells the last death only.
    for reason in ("one", "two"):
        db.execute("UPDATE outbox.delivery SET state = 'dead', due_at = NULL, attempts = 10, error = 'boom'")
        db.execute(
            "INSERT INTO outbox.dead_letter (event_id, handler, event_created_at, name, payload, attempts, error)"
            " SELECT id, 'h', created_at, name, payload, 10, 'boom' FROM outbox.event WHERE id = %s"
            " ON CONFLICT (event_id, handler) DO UPDATE SET died_at = clock_timestamp(), replayed_at = NULL",
            [id],
        )
        edit = Edit.parse(["payload.n=1"]) if reason == "two" else None
        admin.replay(db, which, reason=reason, actor="bob@desk", edit=edit)
    (copy,) = db.execute("SELECT id FROM outbox.event WHERE id <> %s", [id]).fetchone() or ()
    _, second, third = replays(id)
    assert str(second).startswith("by bob@desk: one; it was dead since ")
    assert third == f"as the edited copy {copy}, by bob@desk: two"
    assert replays(copy) == ["by bob@desk: two"]


# Who asks ----------------------------------------------------------------------------------------------------------


def alchemy(database_url: str, driver: str = "psycopg") -> str:
    return database_url.replace("postgresql://", f"postgresql+{driver}://", 1)


def test_every_kind_of_session_gives_the_same_story(database_url: str, db: Db) -> None:
    id = add(db)
    tick(db)
    handle(db)
    expected = (id, "waiting", "paid", ["worker"])

    def facts(story: outbox.admin.Story) -> Any:
        return story.id, story.state, story.name, [wait.code for wait in story.waits]

    engine = create_engine(alchemy(database_url))
    with Session(engine) as session, engine.connect() as connection:
        scoped = scoped_session(sessionmaker(engine))
        for target in (session, connection, scoped):
            assert facts(outbox.status(target, id)) == expected
        assert facts(outbox.status(session, str(id))) == expected
        scoped.remove()
    engine.dispose()
    assert facts(admin.story(database_url, id)) == expected

    async def ask() -> None:
        asynchronous = create_async_engine(alchemy(database_url))
        async with async_sessionmaker(asynchronous)() as session, asynchronous.connect() as connection:
            assert isinstance(session, AsyncSession)
            assert facts(await outbox.status(session, id)) == expected
            assert facts(await outbox.status(connection, id)) == expected
        await asynchronous.dispose()

    asyncio.run(ask())


def test_in_the_transaction_that_added_it_an_event_waits_for_the_commit(database_url: str, db: Db) -> None:
    handle(db)
    engine = create_engine(alchemy(database_url))
    with Session(engine) as session:
        event = outbox.add(session, "paid", n=1)
        assert outbox.status(session, event.id).state == "unknown", "it is not flushed"
        session.flush()
        assert [wait.code for wait in outbox.status(session, event.id).waits] == ["commit"]
        other = admin.story(db, event.id)
        assert [wait.code for wait in other.waits] == ["open_transaction"]
        assert "transactions that added events are open: session " in other.waits[0].text
        session.commit()
        assert [wait.code for wait in outbox.status(session, event.id).waits] == ["relay_down"]
    engine.dispose()


def test_what_is_no_id_or_no_session_is_refused(database_url: str) -> None:
    engine = create_engine(alchemy(database_url))
    with Session(engine) as session, pytest.raises(ValueError, match="'seven' is not an outbox id, which is a UUID"):
        outbox.status(session, "seven")
    with pytest.raises(outbox.TargetError, match="not Engine"):
        outbox.status(engine, uuid.uuid4())  # type: ignore[call-overload]
    engine.dispose()


def test_without_the_schema_the_advice_is_to_migrate(empty_database_url: str) -> None:
    engine = create_engine(alchemy(empty_database_url))
    with Session(engine) as session, pytest.raises(outbox.SchemaError, match="run `outbox migrate`"):
        outbox.status(session, uuid.uuid4())
    with pytest.raises(outbox.SchemaError, match="run `outbox migrate`"):
        admin.story(empty_database_url, uuid.uuid4())
    engine.dispose()


def test_a_role_with_the_reader_s_grants_may_ask_and_change_nothing(database_url: str, db: Db) -> None:
    from outbox.migrations.roles import roles_sql

    role = f"reader_{uuid.uuid4().hex[:8]}"
    id = add(db)
    db.execute(f"CREATE ROLE {role}".encode())
    try:
        db.execute(roles_sql(reader=role).encode())
        db.execute(f"SET ROLE {role}".encode())
        assert admin.story(db, id).state == "waiting"
        assert admin.status(db).unpublished.value == 1
        assert len(admin.events(db)) == 1
        for change in ("DELETE FROM outbox.event", "UPDATE outbox.delivery SET attempts = 0"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                db.execute(change.encode())
    finally:
        db.execute("RESET ROLE")
        db.execute(f"DROP OWNED BY {role}".encode())
        db.execute(f"DROP ROLE {role}".encode())


# By command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`outbox …` in this process: exit status, stdout and stderr. Redis is away unless said otherwise."""
    monkeypatch.setenv("OUTBOX_DATABASE_URL", database_url)
    monkeypatch.setenv("OUTBOX_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: str) -> tuple[int, str, str]:
        status = main.run(arguments)
        return status, *capsys.readouterr()

    return command


def test_the_command_prints_the_time_line_and_what_it_waits_for(run: Any, db: Db) -> None:
    id = add(db)
    number = tick(db)
    handle(db)
    db.execute("SELECT pg_advisory_lock(%s)", [lock_id("relay", "outbox")])
    db.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at, error, failures)"
        " SELECT id, 'h', created_at, 'retrying', 1, now() + interval '1 hour', 'Refused: no',"
        "        outbox.with_failure(NULL, 1, 'Refused: no') FROM outbox.event"
    )
    status, out, _ = run("status", str(id))
    assert status == 0
    assert out.startswith(f"{id}  paid: retrying\n")
    steps = [line.split("Z ")[1].split("  ")[0].strip() for line in out.splitlines() if line[:2] == "20"]
    assert steps == ["added", "committed", "in tick", "published", "failed", "due"]
    assert re.search(rf"in tick +– +{number}\b", out)
    assert "attempt 1: Refused: no" in out
    assert "h waits: the next attempt is due in 59 minutes" in out
    status, out, _ = run("status", str(id), "-o", "json")
    found = json.loads(out)
    assert (status, found["state"], found["position"].partition("-")[0]) == (0, "retrying", str(number))
    assert found["handlers"][0]["waits_for"]["code"] == "retry_due"


def test_redis_is_asked_who_has_the_entry(run: Any, db: Db, redis_server: Redis) -> None:
    id = add(db)
    tick(db)
    handle(db)
    position = str(admin.story(db, id).position)
    _, _, err = run("status", str(id))
    assert "Redis could not be asked" in err
    where = ["--redis-url", redis_server.url]
    assert json.loads(run("status", str(id), "-o", "json", *where)[1])["places"] == []
    assert "no stream has it for h: Redis lost or trimmed it" in run("status", str(id), *where)[1]
    with redis.Redis.from_url(redis_server.url) as client:
        client.xadd("outbox:{paid}", {"id": "x"}, id=position)
        client.xgroup_create("outbox:{paid}", "h", "0")
        shown = run("status", str(id), *where)[1]
        assert "in outbox:{paid} for h: nobody has it yet" in shown
        assert "no stream has it" not in shown
        client.xreadgroup("h", "worker-1", {"outbox:{paid}": ">"})
        assert "in outbox:{paid} for h: worker-1 has it, renewed " in run("status", str(id), *where)[1]


def test_an_id_that_nobody_knows_exits_1_and_says_what_that_may_mean(run: Any) -> None:
    status, out, _ = run("status", str(uuid.UUID(int=7)))
    assert status == 1
    assert "unknown" in out
    assert "never added, was rolled back, or is older than what is retained" in out


@pytest.mark.parametrize("arguments", [["seven"], [str(uuid.UUID(int=7)), "--check", "relay"]], ids=" ".join)
def test_wrong_ids_are_wrong_usage(run: Any, arguments: list[str]) -> None:
    assert run("status", *arguments)[0] == 2
