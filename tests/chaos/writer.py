"""A writer: business transactions with events, in every way there is to write one; each in the history."""

from __future__ import annotations

import json
import random
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy.exc
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

import outbox
from tests.chaos.history import History
from tests.chaos.tasks import sha

THREADS = 3
KEYS = 12
BUSINESS = text("INSERT INTO business (id, tx, key, n) VALUES (:id, :tx, :key, :n)")
COUNT = text("UPDATE counter SET n = n + 1 WHERE key = :key RETURNING n")
RAW = text("INSERT INTO outbox.event (id, name, key, payload) VALUES (:id, :name, :key, cast(:payload AS json))")
SHIFTED = text(
    "INSERT INTO outbox.event (id, name, key, payload, created_at)"
    " VALUES (:id, :name, :key, cast(:payload AS json), clock_timestamp() + :hours * interval '1 hour')"
)
ODD: tuple[Any, ...] = (
    1e16,
    -0.0,
    5e-324,
    10**30,
    "",
    "ä€😀\u2028\x7f",
    "'\"\\\\u0041{}",
    {"b": 1, "a": [None, True, {"": ""}]},
    [[[[]]]],
)
"""Values that a careless path changes."""

Said = dict[str, Any]


class Writer:
    """Writes until it is stopped. `rate` is in transactions a second."""

    def __init__(self, name: str, url: str, folder: Path, *, rate: float) -> None:
        self.history = History(folder / f"{name}.jsonl")
        self.engine = create_engine(
            url.replace("postgresql://", "postgresql+psycopg://", 1),
            pool_size=THREADS,
            connect_args={"connect_timeout": 3, "options": "-c idle_in_transaction_session_timeout=5s"},
        )
        self.pause = THREADS / rate
        self.over = threading.Event()
        self.numbers = count(1)

    def run(self) -> None:
        """Write in some threads until `over` is set."""
        threads = [threading.Thread(target=self._write, daemon=True) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        self.over.wait()
        for thread in threads:
            thread.join()
        self.history.say("over")

    def _write(self) -> None:
        while not self.over.is_set():
            tx = f"{self.history.who}-{self.history.pid}-{next(self.numbers)}"
            outcome, error = "fail", ""
            try:
                outcome = self._transaction(tx)
            except Unknown as unknown:
                outcome, error = "unknown", str(unknown)
            except (sqlalchemy.exc.SQLAlchemyError, psycopg.Error) as failed:
                error = _what(failed)
            except Exception as broken:
                self.history.say("broken", error=repr(broken))
                raise
            self.history.say(outcome, tx=tx, **({"error": error} if error else {}))
            self.over.wait(random.expovariate(1 / self.pause) if outcome == "ok" else 0.05)

    def _transaction(self, tx: str) -> str:
        unflushed = random.random() < 0.15
        isolation = random.choice(["READ COMMITTED"] * 6 + ["REPEATABLE READ", "SERIALIZABLE"])
        with self.engine.connect().execution_options(isolation_level=isolation) as connection:
            begun = connection.begin()
            try:
                if unflushed:
                    connection.execute(text("SET LOCAL synchronous_commit = off"))
                if random.random() < 0.3:
                    # A transaction id at once, and the COMMIT long after those of later ones.
                    connection.execute(text("SELECT pg_current_xact_id()"))
                    time.sleep(random.expovariate(1 / 0.05))
                said = random.choice((self._session, self._session, self._core, self._raw, self._burst))(tx, connection)
                kept = random.random() > 0.1
                self.history.say("intent", tx=tx, events=said, kept=kept, flushed=not unflushed)
                time.sleep(random.choices((0.0, 0.01, 0.2, 2.0), (60, 20, 20, 1))[0] * random.random())
                if not kept:
                    begun.rollback()
                    return "rolled back"
            except BaseException:
                connection.invalidate()
                raise
            try:
                begun.commit()
            except (sqlalchemy.exc.SQLAlchemyError, psycopg.Error) as error:
                state = getattr(getattr(error, "orig", error), "sqlstate", None)
                if state is not None and state.startswith("40"):
                    raise
                connection.invalidate()
                raise Unknown(_what(error)) from error
            return "ok"

    # Ways to write; each gives what it wrote

    def _session(self, tx: str, connection: Connection) -> list[Said]:
        """Through a session; some events go with a savepoint."""
        said = []
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            for _ in range(random.choice((1, 1, 2))):
                key, n = self._next(session)
                event = outbox.add(session, _name(), _key=key, **_payload(n))
                said.append(_said(event, key, n))
                self._business(session, tx, said[-1])
            if random.random() < 0.2:
                undone = session.begin_nested()
                session.add_all([])
                lost = outbox.add(session, _name(), **_payload(0))
                session.flush()
                undone.rollback()
                said.append(_said(lost, None, 0) | {"undone": True})
            session.commit()
        return said

    def _core(self, tx: str, connection: Connection) -> list[Said]:
        key, n = self._next(connection)
        said = _said(outbox.add(connection, _name(), _key=key, **_payload(n)), key, n)
        self._business(connection, tx, said)
        return [said]

    def _raw(self, tx: str, connection: Connection) -> list[Said]:
        """As a program in another language does, some with a clock that is wrong."""
        key, n = self._next(connection)
        payload = json.dumps(_payload(n), separators=random.choice(((",", ":"), (", ", ": "), (" ,", " : "))))
        facts = {"id": str(uuid7()), "name": _name(), "key": key, "payload": payload}
        said = {"id": facts["id"], "name": facts["name"], "key": key, "n": n, "sha": sha(payload)}
        if random.random() < 0.1:
            connection.execute(SHIFTED, facts | {"hours": random.choice((-1, 1))})
            said["shifted"] = True
        else:
            connection.execute(RAW, facts)
        self._business(connection, tx, said)
        return [said]

    def _burst(self, tx: str, connection: Connection) -> list[Said]:
        """Many at once."""
        key, n = self._next(connection)
        size = random.choice((2, 5, 40)) if random.random() < 0.3 else 2
        events = outbox.add_many(connection, _name(), [_payload(n) for _ in range(size)], _key=key)
        said = [_said(event, key, n + place / 1000) for place, event in enumerate(events)]
        for each in said:
            self._business(connection, tx, each)
        return said

    def _next(self, target: Any) -> tuple[str | None, float]:
        """A key with its next number, under the key's lock; or none."""
        if random.random() < 0.3:
            return None, 0
        key = f"key-{random.randrange(KEYS)}"
        return key, target.execute(COUNT, {"key": key}).scalar_one()

    def _business(self, target: Any, tx: str, said: Said) -> None:
        target.execute(BUSINESS, {"id": said["id"], "tx": tx, "key": said["key"], "n": int(said["n"])})


class Unknown(Exception):
    """COMMIT was sent, and what came of it is not known."""


def _what(error: BaseException) -> str:
    return f"{type(error).__name__} {getattr(getattr(error, 'orig', None), 'sqlstate', None) or ''}".strip()


def _name() -> str:
    return random.choices(("order", "note", "later"), (6, 3, 1))[0]


def _payload(n: float) -> dict[str, Any]:
    payload: dict[str, Any] = {"n": int(n)}
    drawn = random.random()
    if drawn < 0.3:
        payload["odd"] = random.choice(ODD)
    elif drawn < 0.35:
        payload["filler"] = "x" * random.choice((1000, 20_000, 100_000))
    elif drawn < 0.38:
        payload["doomed"] = True
    elif drawn < 0.42:
        payload["moody"] = True
    return payload


def _said(event: outbox.Event, key: str | None, n: float) -> Said:
    return {"id": str(event.id), "name": event.name, "key": key, "n": n, "sha": sha(event.payload_json)}
