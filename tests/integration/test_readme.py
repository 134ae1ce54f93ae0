"""The README's programs do what it says: the samples on a real database, the quick start as its reader would run it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from fastapi import Depends, FastAPI
from pydantic import BaseModel
from sqlalchemy import create_engine, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import outbox
import workers
from console.main import run
from console.servers import free_port
from outbox import Event
from outbox.settings import Settings
from outbox_testing import drain, run_sync
from workers import App, Backoff, Context, Reject, RetryLater, Snooze
from workers.dependencies import composed

README = (Path(__file__).parents[2] / "README.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SQL = re.findall(r"^```sql\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHELL = "".join(re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)).splitlines()
FILES = {block.split("\n", 1)[0][2:]: block for block in PYTHON if block.startswith("# ")}


def block(containing: str) -> str:
    """The one sample that contains this."""
    (found,) = [each for each in PYTHON if containing in each and each not in FILES.values()]
    return found


class Base(DeclarativeBase):
    """What a reader of the README is taken to have."""


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]


class Sent(Base):
    __tablename__ = "sent"
    email: Mapped[str] = mapped_column(primary_key=True)


class Invoice(Base):
    __tablename__ = "invoices"
    order_id: Mapped[int] = mapped_column(primary_key=True)


class Sale(Base):
    __tablename__ = "sales"
    order_id: Mapped[int] = mapped_column(primary_key=True)


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    packed: Mapped[bool] = mapped_column(default=False)


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[Decimal]


class SignUp(BaseModel):
    email: str


class Calls:
    """A queue and a mail provider that remember what was asked of them."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, ...]] = []

    async def enqueue(self, *arguments: Any) -> None:
        self.made.append(arguments)

    async def send(self, *arguments: Any, idempotency_key: str) -> None:
        self.made.append((*arguments, idempotency_key))


@pytest.fixture
def sqlalchemy_url(database_url: str) -> str:
    url = database_url.replace("postgresql://", "postgresql+psycopg://", 1)
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    engine.dispose()
    return url


def rows(database_url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


@pytest.fixture
def names(sqlalchemy_url: str) -> dict[str, Any]:
    """What the samples may use without saying where it comes from."""

    async def session() -> Any:
        engine = create_async_engine(sqlalchemy_url)
        async with AsyncSession(engine) as opened:
            yield opened
        await engine.dispose()

    calls = Calls()
    return {
        "Annotated": Annotated, "App": App, "AsyncSession": AsyncSession, "Customer": Customer, "Backoff": Backoff,
        "Context": Context, "Decimal": Decimal, "Event": Event, "Invoice": Invoice, "Order": Order, "Reject": Reject,
        "RetryLater": RetryLater, "Sent": Sent, "Sequence": Sequence, "Session": Session,
        "SessionDep": Annotated[AsyncSession, Depends(session)], "SignUp": SignUp, "Snooze": Snooze, "User": User,
        "dataclass": dataclass, "mail": calls, "outbox": outbox, "queue": calls, "timedelta": timedelta,
        "workers": workers, "warehouse_closed": lambda: True,
    }  # fmt: skip


def sign_up(app: FastAPI) -> int:
    """The status of a sign-up at this API."""

    async def post() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
            return (await client.post("/signup", json={"email": "first@shop.example"})).status_code

    return asyncio.run(post())


def test_the_bug_stores_the_customer_and_enqueues_apart_from_it(names: dict[str, Any], database_url: str) -> None:
    app = names["app"] = FastAPI()
    exec(block("queue.enqueue"), names)
    assert sign_up(app) == 200
    assert names["queue"].made == [("send_welcome", "first@shop.example")]
    assert rows(database_url, "SELECT count(*) FROM outbox.event") == [(0,)]


def test_the_fix_stores_customer_and_event_together(names: dict[str, Any], database_url: str) -> None:
    app = names["app"] = FastAPI()
    exec(block("both, or neither"), names)
    assert sign_up(app) == 200
    assert rows(database_url, "SELECT u.email, e.name, e.payload FROM users AS u, outbox.event AS e") == [
        ("first@shop.example", "signed_up", {"email": "first@shop.example"})
    ]


def test_the_first_handler_takes_its_arguments_and_writes_in_its_transaction(
    names: dict[str, Any], sqlalchemy_url: str
) -> None:
    exec(block("def send_welcome(email: str, session"), names)
    handler = names["app"].handlers["send_welcome"]
    assert (handler.event_name, handler.max_attempts, handler.timeout, handler.transactional) == (
        "signed_up", 10, 30, True,
    )  # fmt: skip
    event = Event(uuid4(), "signed_up", '{"email": "first@shop.example"}')

    async def run() -> list[str]:
        engine = create_async_engine(sqlalchemy_url)
        async with AsyncSession(engine) as session:
            await handler.function(**handler.binding.bind(event.payload), session=session, event=event)
            written = [row.email for row in session.new]
        await engine.dispose()
        return written

    assert asyncio.run(run()) == ["first@shop.example"]
    assert names["mail"].made == [("first@shop.example", "Welcome", str(event.id))]


def test_events_are_added_as_shown(names: dict[str, Any], sqlalchemy_url: str, database_url: str) -> None:
    names["engine"] = create_engine(sqlalchemy_url)
    with Session(names["engine"]) as session:
        names["session"] = session
        for sample in ("add_many", "connection.execute", "__event__", "assert_added"):
            exec(block(sample), names)
        session.commit()
    names["engine"].dispose()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(next(sample for sample in SQL if "INSERT" in sample).encode())
    found = rows(database_url, "SELECT name, key, payload, headers FROM outbox.event ORDER BY seq")
    assert found == [
        ("order_placed", None, {"order_id": 17, "total": "49.90"}, None),
        ("order_paid", "order-17", {"order_id": 17}, {"tenant": "acme"}),
        *(("reminder_due", str(number), {"user_id": number}, None) for number in (1, 2, 3)),
        ("order_placed", None, {"order_id": 18}, None),
        ("order_placed", "order-19", {"order_id": 19}, None),
        ("order_shipped", None, {"order_id": 17}, None),
        ("order_placed", "order-20", {"order_id": 20}, None),
    ]


def test_the_shown_handlers_are_called_and_end_as_described(names: dict[str, Any], sqlalchemy_url: str) -> None:
    names["app"] = App()
    exec(block("__event__").partition("outbox.add")[0], names)
    exec(block("reserve_goods"), names)
    handlers = names["app"].handlers
    assert set(handlers) == {"reserve_goods", "bookkeeping", "ship"}
    assert handlers["reserve_goods"].binding.bind({"order_id": "17"}) == {"order_id": 17}
    engine = create_engine(sqlalchemy_url)
    with Session(engine) as session:
        bound = handlers["bookkeeping"].binding.bind({"order_id": 17})
        handlers["bookkeeping"].function(**bound, session=session)
        outbox.testing.assert_added(session, "invoice_written", order_id=17)
        session.rollback()
        session.add_all([Order(id=1, packed=False), Order(id=2, packed=True)])
        session.commit()
    engine.dispose()

    async def ship(order_id: int) -> None:
        asynchronous = create_async_engine(sqlalchemy_url)
        try:
            async with AsyncSession(asynchronous) as opened:
                await handlers["ship"].function(order_id=order_id, session=opened)
        finally:
            await asynchronous.dispose()

    for order_id, outcome in ((0, Reject), (1, Snooze), (2, RetryLater)):
        with pytest.raises(outcome):
            asyncio.run(ship(order_id))


def test_the_shown_lifespan_gives_its_mailer_to_the_handler_that_asks_for_it(
    names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAIL_SERVER", "mail.example")

    class Mailer:
        def __init__(self, server: str) -> None:
            self.sent: list[str] = [server]

        async def __aenter__(self) -> Mailer:
            return self

        async def __aexit__(self, *_: object) -> None:
            self.sent.append("closed")

        async def send(self, recipient: str, text: str) -> None:
            self.sent.append(recipient)

    names |= {"Mailer": Mailer, "asynccontextmanager": asynccontextmanager, "AsyncIterator": AsyncIterator, "os": os}
    exec(block("lifespan(app: App)"), names)
    app = names["app"]
    handler = app.handlers["tell"]

    async def run() -> list[str]:
        async with app.lifespan(app) as mailer:
            given = app.resources.taken(mailer, [("tell", "mailer", Mailer)])
            await composed(handler, given)(**handler.binding.bind({"email": "first@shop.example"}))
        return mailer.sent

    assert asyncio.run(run()) == ["mail.example", "first@shop.example", "closed"]


def test_the_shown_batch_handlers_take_lists_of_events(names: dict[str, Any], sqlalchemy_url: str) -> None:
    class Mail:
        async def send_receipt(self, event: Event) -> None:
            if event.payload["order_id"] == 2:
                raise ConnectionError("no mail today")

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[Mail]:
        yield Mail()

    names |= {"app": App(lifespan=lifespan), "Mail": Mail, "Sale": Sale, "asyncio": asyncio}
    exec(block("batch=100"), names)
    handlers = names["app"].handlers
    assert [handlers[name].batch for name in ("count_sales", "send_receipts")] == [100, 50]
    at = datetime.now(UTC)
    events = [Event(uuid4(), "order_placed", f'{{"order_id": {n}}}', None, {}, at) for n in (1, 2)]

    async def run() -> list[BaseException | None]:
        asynchronous = create_async_engine(sqlalchemy_url)
        try:
            async with AsyncSession(asynchronous) as session:
                await handlers["count_sales"].function(events=events, session=session)
                await session.flush()
                assert len((await session.scalars(select(Sale))).all()) == 2
        finally:
            await asynchronous.dispose()
        answers: list[BaseException | None] = await handlers["send_receipts"].function(events=events, mail=Mail())
        return answers

    first, second = asyncio.run(run())
    assert first is None
    assert isinstance(second, ConnectionError)


def test_the_shown_dependency_looks_its_customer_up_in_the_handlers_session(
    names: dict[str, Any], sqlalchemy_url: str
) -> None:
    names["app"] = App()
    exec(block("get_customer"), names)
    handler = names["app"].handlers["refund"]
    assert handler.transactional

    async def run() -> Decimal:
        engine = create_async_engine(sqlalchemy_url)
        async with AsyncSession(engine) as session:
            session.add(Customer(id=7, balance=Decimal(1)))
            await session.flush()
            payload = {"customer_id": 7, "amount": "2.50"}
            hidden = {parameter: payload for kind, parameter in handler.binding.injected.items() if kind == "payload"}
            hidden[handler.binding.injected["async_session"]] = session  # type: ignore[assignment]
            await composed(handler, {})(**handler.binding.bind(payload), **hidden)
            found = (await session.get_one(Customer, 7)).balance
        await engine.dispose()
        return found

    assert asyncio.run(run()) == Decimal("3.50")


def test_the_shown_middleware_counts_outcomes(names: dict[str, Any]) -> None:
    class Metrics(list[str]):
        increment = list.append

    app = names["app"] = App()
    names["metrics"] = Metrics()
    exec(block("@app.middleware"), names)

    @app.handler("order_placed")
    async def h(order_id: int) -> None: ...

    run_sync(app, "h", {"order_id": 1})
    run_sync(app, "h", {"order_id": "none"})
    assert names["metrics"] == ["order_placed.Done", "order_placed.Retry"]


def test_the_shown_batch_middleware_puts_off_all_events_of_an_outage(names: dict[str, Any]) -> None:
    app = names["app"] = App()
    exec(block("@app.batch_middleware"), names)

    @app.handler("order_placed", batch=10)
    async def h(events: list[Event]) -> None:
        raise ConnectionError

    assert run_sync(app, "h", {"order_id": 1}) == workers.Retry(60, "RetryLater: the mail server is away")


def test_the_shown_endpoint_tells_the_result_of_the_shown_handler_when_it_is_there(
    names: dict[str, Any], database_url: str, outbox_redis_url: str
) -> None:
    settings = Settings(database_url=database_url, redis_url=outbox_redis_url, prefix="shown", _env_file=None)
    engine = create_async_engine(settings.sqlalchemy_url())

    async def get_session() -> Any:
        async with AsyncSession(engine) as opened:
            yield opened

    app, web = names["app"], names["web"] = App(), FastAPI()
    names |= {"Any": Any, "Depends": Depends, "UUID": UUID, "get_session": get_session}
    names["render"] = lambda month: f"https://files.shop.example/{month}"
    exec(block("async def report"), names)

    async def poll() -> None:
        async with AsyncSession(engine) as session:
            event = outbox.add(session, "report_wanted", month="2026-01")
            await session.commit()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(web), base_url="http://shop") as client:
            assert (await client.get(f"/reports/{event.id}")).json() == {"state": "waiting", "results": {}}
            await drain(app, settings)
            url = "https://files.shop.example/2026-01"
            done = {"state": "done", "results": {"draw": {"url": url}}}
            assert (await client.get(f"/reports/{event.id}")).json() == done
        await engine.dispose()

    asyncio.run(poll())


def test_upkeep_by_hand_works(database_url: str, outbox_redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_DATABASE_URL", database_url)
    monkeypatch.setenv("OUTBOX_REDIS_URL", outbox_redis_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO outbox.handler (name, event_name, last_seen)"
            " SELECT name, 'order_placed', now() - interval '1 day' FROM unnest(ARRAY['write_invoice', 'bill']) AS name"
        )
        for line in SHELL:
            if line.startswith(("outbox forget", "outbox rename")):
                assert run([*shlex.split(line)[1:], "--yes"]) == 0
        assert connection.execute("SELECT name FROM outbox.handler").fetchall() == [("send_invoice",)]


# The quick start, as a reader runs it


def eventually(reached: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class Reader:
    """Someone who follows the quick start in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OUTBOX_", "PG"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}"
        self.environment = inherited | {"PATH": path, "PYTHONUNBUFFERED": "1"}
        for name, text in FILES.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)

    def run(self, line: str) -> str:
        done = subprocess.run(
            shlex.split(line), cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def running(self, line: str) -> Iterator[Path]:
        """A program in a shell of its own; yields the file with its output."""
        words = shlex.split(line)
        output = self.folder / f"{Path(words[0]).name}-{time.monotonic_ns()}.log"
        with output.open("wb") as log:
            program = subprocess.Popen(
                words, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            yield output
        finally:
            program.send_signal(signal.SIGINT)
            assert program.wait(timeout=60) == 0, output.read_text()

    def outcomes(self) -> Counter[tuple[str, str]]:
        """How many events have which outcome, by handler and state, as `outbox events` says."""
        found = json.loads(self.run("outbox events --output json"))
        return Counter((each["handler"], each["state"]) for event in found for each in event["deliveries"])


@pytest.mark.slow
def test_the_quick_start_ends_as_it_says(scratch: Path) -> None:
    folder = scratch / "quick"
    folder.mkdir()
    reader = Reader(folder)
    assert set(FILES) == {"shop/models.py", "shop/api.py", "shop/mail.py", "shop/tasks.py"}
    port = free_port()
    with reader.running(next(line for line in SHELL if line.startswith("outbox dev"))) as dev:
        eventually(lambda: "worker.started" in dev.read_text(), "all is up")
        printed = re.findall(r"^export (.+)$", dev.read_text(), re.MULTILINE)
        assert len(printed) == 2
        for word in printed:
            name, _, value = shlex.split(word)[0].partition("=")
            reader.environment[name] = value
        with reader.running(f"uvicorn shop.api:app --port {port}") as api:
            eventually(lambda: "Application startup complete" in api.read_text(), "the API starts")
            for body in re.findall(r"^curl .* -d '(.+)'$", README, re.MULTILINE):
                headers = {"content-type": "application/json"}
                url = f"http://127.0.0.1:{port}/signup"
                assert httpx.post(url, content=body, headers=headers, trust_env=False).is_success
            ended = {("send_welcome", "done"): 1, ("send_welcome", "dead"): 1, ("award_points", "done"): 2}
            eventually(lambda: reader.outcomes() == ended, "all end")
            assert "to first@shop.example: Welcome!" in dev.read_text()
            (letter,) = json.loads(reader.run("outbox dead --output json"))
            assert (letter["attempts"], letter["payload"]["email"]) == (3, "second@shop.invalid")
            assert len(json.loads(reader.run("outbox events --name signed_up --output json"))) == 2
            points = "SELECT email, points FROM users ORDER BY email"
            assert rows(reader.environment["OUTBOX_DATABASE_URL"], points) == [
                ("first@shop.example", 100),
                ("second@shop.invalid", 100),
            ]
            corrected = (folder / "shop/mail.py").read_text().replace('.endswith(".invalid")', '.endswith(".nowhere")')
            (folder / "shop/mail.py").write_text(corrected)
            eventually(lambda: dev.read_text().count("worker.started") == 2, "the worker starts again")
            assert "put back 1 of 1" in reader.run("outbox replay --handler send_welcome --yes")
            eventually(lambda: reader.outcomes()["send_welcome", "done"] == 2, "the letter is done")
            assert "to second@shop.invalid: Welcome!" in dev.read_text()
            assert json.loads(reader.run("outbox dead --output json")) == []
