"""Writers of every kind against a relay that publishes, falls asleep and wakes up beneath them.

Nothing may be lost, doubled or published though it was rolled back; and events of one key, written under the lock of
that key's row, must stand in the stream in the order in which they were written.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import outbox
from relay import pacing

pytestmark = pytest.mark.slow

BURSTS = 3
LAST = "last"
NAMES = ("left", "right")
KEYS = [f"{name}-{number}" for name in NAMES for number in range(2)]

RETRYABLE = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)


class Base(DeclarativeBase):
    pass


class Zone(Base):
    """Sorts behind the event's table: only an INSERT that is flushed last comes after this row's lock."""

    __tablename__ = "zone"
    key: Mapped[str] = mapped_column(primary_key=True)
    n: Mapped[int]


class RolledBack(Exception):
    """A writer changed its mind."""


@dataclass
class Weather:
    """What goes on around the writers: whether to write, and whether the relay sleeps."""

    writing: threading.Event = field(default_factory=threading.Event)
    asleep: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    written: int = 0


class Writer:
    """One writer with a connection of its own. `committed` holds what must be published: (name, key, n, token)."""

    def __init__(self, url: str, number: int, weather: Weather, chance: random.Random) -> None:
        self.number = number
        self.weather = weather
        self.chance = chance
        self.committed: list[tuple[str, str, int, str]] = []
        self.said: list[tuple[str, str, int, str]] = []
        self.failure: BaseException | None = None
        self.tokens = 0
        self.engine = sqlalchemy.create_engine(
            url.replace("postgresql://", "postgresql+psycopg://"), poolclass=sqlalchemy.StaticPool
        )
        kinds = (self.raw, self.early, self.core, self.orm, self.repeatable, self.long)
        self.kind: Callable[[], None] = kinds[number % len(kinds)]
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self) -> None:
        try:
            while not self.weather.over.is_set():
                if not self.weather.writing.wait(0.05):
                    continue
                self.said = []
                try:
                    self.kind()
                except (RolledBack, *RETRYABLE):
                    continue
                except sqlalchemy.exc.DBAPIError as error:
                    if not isinstance(error.orig, RETRYABLE):
                        raise
                    continue
                self.committed += self.said
                self.weather.written += len(self.said)
        except BaseException as error:
            self.failure = error
        finally:
            self.engine.dispose()

    # What writers do

    def nap(self, longest: float = 0.01) -> None:
        """Let others in between."""
        time.sleep(self.chance.random() ** 2 * longest)

    def token(self, name: str, key: str = "", n: int = 0) -> str:
        self.tokens += 1
        token = f"{self.number}.{self.tokens}"
        self.said.append((name, key, n, token))
        return token

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection]:
        """The driver's connection in a transaction that is committed, if chance does not roll it back."""
        with self.engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            if self.chance.random() < 0.3:
                driver.execute("SET LOCAL synchronous_commit = off")
            yield driver
            self.change_mind()
            self.nap()
            driver.commit()

    def change_mind(self) -> None:
        if self.chance.random() < 0.15:
            raise RolledBack

    def bump(self, driver: psycopg.Connection, key: str) -> int:
        row = driver.execute("UPDATE counter SET n = n + 1 WHERE key = %s RETURNING n", [key]).fetchone()
        assert row is not None
        return int(row[0])

    def tell(self, driver: psycopg.Connection, key: str) -> None:
        """Bump a key's counter and say so, under its row's lock."""
        n = self.bump(driver, key)
        self.nap(0.003)
        name = key.partition("-")[0]
        driver.execute(
            "INSERT INTO outbox.event (name, key, payload) VALUES (%s, %s, json_build_object('token', %s::text))",
            [name, key, self.token(name, key, n)],
        )

    def whisper(self, driver: psycopg.Connection) -> None:
        """An event without a key."""
        name = self.chance.choice(NAMES)
        driver.execute(
            "INSERT INTO outbox.event (name, payload) VALUES (%s, json_build_object('token', %s::text))",
            [name, self.token(name)],
        )

    def keys(self) -> list[str]:
        return sorted(self.chance.sample(KEYS, self.chance.choice([1, 1, 1, 2])))

    # The kinds of writers

    def raw(self) -> None:
        """Plain SQL; now and then a part of it is rolled back to a savepoint."""
        with self.transaction() as driver:
            if self.chance.random() < 0.4:
                driver.execute("SAVEPOINT here")
                kept = len(self.said)
                self.tell(driver, self.chance.choice(KEYS))
                del self.said[kept:]
                driver.execute("ROLLBACK TO here")
            for key in self.keys():
                self.tell(driver, key)

    def early(self) -> None:
        """Takes its transaction id long before it says anything."""
        with self.transaction() as driver:
            driver.execute("SELECT pg_current_xact_id()")
            self.nap(0.05)
            for key in self.keys():
                self.tell(driver, key)

    def core(self) -> None:
        """`outbox.add` with a Core connection."""
        with self.engine.begin() as connection:
            driver: Any = connection.connection.driver_connection
            for key in self.keys():
                n, name = self.bump(driver, key), key.partition("-")[0]
                outbox.add(connection, name, _key=key, token=self.token(name, key, n))
            self.nap()
            self.change_mind()

    def orm(self) -> None:
        """`outbox.add` with a session: one flush takes the row's lock and inserts the event, in this order."""
        with Session(self.engine) as session:
            name = self.chance.choice(NAMES)
            zone = session.get_one(Zone, name)
            zone.n = Zone.n + 1  # type: ignore[assignment]
            key = f"{name}-zone"
            token = self.token(name, key)
            outbox.add(session, name, _key=key, token=token)
            session.flush()
            self.said[-1] = (name, key, zone.n, token)
            self.nap()
            self.change_mind()
            session.commit()

    def repeatable(self) -> None:
        """A snapshot that grows old before anything is written."""
        with self.transaction() as driver:
            driver.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            driver.execute("SELECT count(*) FROM counter")
            self.nap(0.03)
            self.whisper(driver)
            if self.chance.random() < 0.5:
                self.tell(driver, self.chance.choice(KEYS))

    def long(self) -> None:
        """Says something and stays open, often until the relay sleeps and a while longer."""
        with self.transaction() as driver:
            self.whisper(driver)
            if self.chance.random() < 0.5:
                self.weather.asleep.wait(10)
            self.nap(0.5)
            self.whisper(driver)


class Bystander:
    """Reads the streams while they are written, as they come."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.over = threading.Event()
        self.seen: dict[str, list[bytes]] = {name: [] for name in NAMES}
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self) -> None:
        at = {f"outbox:{{{name}}}": b"0" for name in NAMES}
        while True:
            last = self.over.is_set()
            found = self.client.xread(dict(at), block=50)
            for key, entries in found:
                at[key.decode()] = entries[-1][0]
                self.seen[key.decode()[8:-1]] += [id_ for id_, _ in entries]
            if last and not found:
                return


def watch(cast: Any, weather: Weather, flips: list[bool]) -> None:
    """Note when the relay falls asleep and wakes."""
    with psycopg.connect(cast.settings.libpq_url(), autocommit=True) as connection:
        while not weather.over.is_set():
            row = connection.execute("SELECT pg_sequence_last_value('outbox.asleep')").fetchone()
            asleep = row is not None and row[0] is not None and row[0] > time.time()
            if not flips or flips[-1] != asleep:
                flips.append(asleep)
            (weather.asleep.set if asleep else weather.asleep.clear)()
            time.sleep(0.005)


@pytest.fixture
def stage(cast: Any) -> Any:
    cast.sql.execute("CREATE TABLE counter (key text PRIMARY KEY, n bigint NOT NULL)")
    cast.sql.execute("INSERT INTO counter SELECT unnest(%s::text[]), 0", [KEYS])
    cast.sql.execute("CREATE TABLE zone (key text PRIMARY KEY, n bigint NOT NULL)")
    cast.sql.execute("INSERT INTO zone SELECT unnest(%s::text[]), 0", [list(NAMES)])
    cast.relay()
    for name in NAMES:
        cast.register(f"{name}_listener", name)
    cast.await_attached()
    return cast


def test_nothing_is_lost_doubled_invented_or_out_of_its_keys_order(
    stage: Any, chance: random.Random, differences: Any, turn: int
) -> None:
    weather, flips = Weather(), list[bool]()
    committed: list[tuple[str, str, int, str]] = []
    url = stage.settings.libpq_url()
    writers = [Writer(url, number, weather, random.Random(chance.random())) for number in range(14)]
    bystander = Bystander(stage.redis)
    watcher = threading.Thread(target=watch, args=(stage, weather, flips), daemon=True)
    for thread in (watcher, bystander.thread, *(writer.thread for writer in writers)):
        thread.start()
    try:
        for burst in range(BURSTS):
            goal = weather.written + pacing.BUSY_ABOVE
            weather.writing.set()
            stage.wait_for(lambda goal=goal: weather.written > goal or failures(writers), "a burst of writes")
            # On a slow machine the writers alone are not enough to keep it awake.
            committed += flood(stage, burst)
            stage.wait_for(lambda: not weather.asleep.is_set() or failures(writers), "the relay to wake")
            weather.writing.clear()
            stage.wait_for(lambda: weather.asleep.is_set() or failures(writers), "the relay to fall asleep")
    finally:
        weather.over.set()
        for writer in writers:
            writer.thread.join(20)
    assert not failures(writers)
    committed += [said for writer in writers for said in writer.committed]
    await_all_published(stage)
    bystander.over.set()
    bystander.thread.join(20)

    assert flips.count(True) >= BURSTS
    published = [token for name in NAMES for token, _ in tokens(stage, name) if token != LAST]
    assert differences([token for _, _, _, token in committed], published) == {}
    numbers = {token: n for _, _, n, token in committed}
    for name in NAMES:
        entries = tokens(stage, name)
        assert bystander.seen[name] == [id_ for _, id_ in entries]
        assert {token for token, _ in entries[:-1]} == {token for said, _, _, token in committed if said == name}
    for key in {key for _, key, _, _ in committed if key}:
        order = [numbers[token] for token in published_under(stage, key)]
        assert order == list(range(1, len(order) + 1)), key


def flood(cast: Any, burst: int) -> list[tuple[str, str, int, str]]:
    """One transaction with more events than a relay sleeps through, and than it reads at once."""
    said = [("left", "", 0, f"flood.{burst}.{number}") for number in range(int(3 * pacing.BUSY_ABOVE))]
    cast.sql.execute(
        "INSERT INTO outbox.event (name, payload)"
        " SELECT 'left', json_build_object('token', token) FROM unnest(%s::text[]) AS token",
        [[token for *_, token in said]],
    )
    return said


def await_all_published(cast: Any) -> None:
    """Say one last thing everywhere: when it is published, so is all that was committed before."""
    for name in NAMES:
        cast.sql.execute(
            "INSERT INTO outbox.event (name, payload) VALUES (%s, %s)", [name, json.dumps({"token": LAST})]
        )
        cast.wait_for(lambda name=name: tokens(cast, name)[-1][0] == LAST, "the last events to be published")


def tokens(cast: Any, name: str) -> list[tuple[str, bytes]]:
    """The events of a stream, in its order, each with its entry's id."""
    return [(json.loads(entry[b"payload"])["token"], id_) for id_, entry in cast.entries(name)]


def published_under(cast: Any, key: str) -> list[str]:
    """The events of one key, in their stream's order."""
    entries = cast.entries(key.partition("-")[0])
    return [json.loads(entry[b"payload"])["token"] for _, entry in entries if entry[b"key"] == key.encode()]


def failures(writers: list[Writer]) -> list[BaseException]:
    return [writer.failure for writer in writers if writer.failure is not None]
