"""The whole path, with a relay and a worker on whatever Redis URL they are given; and clusters."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
import pytest
import redis
import trustme
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from waiting import wait_for

import workers
from console.servers import Redis
from outbox.settings import Settings
from relay import Relay
from workers import Worker

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "redis.md"

NAMES = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot"]
"""Event names; their streams lie in slots of all three nodes."""

DONE = """
SELECT (SELECT count(*) FROM outbox.handler) = %s AND NOT EXISTS (
       SELECT FROM outbox.event AS e JOIN outbox.handler AS h ON h.event_name = e.name
        WHERE NOT EXISTS (SELECT FROM outbox.delivery AS d
                           WHERE d.event_id = e.id AND d.event_created_at = e.created_at AND d.handler = h.name
                             AND d.state = 'done'))
"""


def make_app() -> workers.App:
    """A handler for each name, each with an effect in its transaction."""
    app = workers.App()
    effect = text("INSERT INTO effect (handler, n) VALUES (:handler, :n)")

    def declare(name: str) -> None:
        async def handle(n: int, session: AsyncSession) -> None:
            await session.execute(effect, {"handler": f"on_{name}", "n": n})

        app.handler(name, name=f"on_{name}", backoff=workers.Backoff(initial=0.1, maximum=0.5))(handle)

    for name in NAMES:
        declare(name)
    return app


class WholePath:
    """The whole path: events in, effects out, with a relay and a worker in between while the context is entered."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.sql = psycopg.connect(settings.libpq_url(), autocommit=True)
        self.sql.execute("CREATE TABLE IF NOT EXISTS effect (handler text, n bigint)")
        self.names = NAMES
        self.added = 0
        self.errors: list[BaseException] = []
        self._relay = Relay(settings)
        self._worker: Worker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads = [
            threading.Thread(target=self._guard, args=(run,), daemon=True) for run in (self._relay.run, self._work)
        ]

    def _guard(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:
            self.errors.append(error)

    def _work(self) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._worker = Worker(make_app(), self.settings, lease=2.0, heartbeat=0.5)
            await self._worker.run()

        asyncio.run(main())

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._relay.stop()
        if self._worker is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._worker.request_stop)
        for thread in self._threads:
            thread.join(timeout=60)
        self.sql.close()
        if kind is None:
            assert not any(thread.is_alive() for thread in self._threads)
            assert self.errors == []

    def add(self, count: int) -> None:
        """Add as many events of each name."""
        first, self.added = self.added, self.added + count
        for name in NAMES:
            self.sql.execute(
                "INSERT INTO outbox.event (name, payload)"
                " SELECT %s, json_build_object('n', n) FROM generate_series(%s::int, %s::int) AS n",
                [name, first + 1, first + count],
            )

    def value(self, statement: str, *parameters: Any) -> Any:
        row = self.sql.execute(statement.encode(), parameters).fetchone()
        assert row is not None
        return row[0]

    def await_attached(self) -> None:
        wait_for(
            lambda: self.errors or self.value("SELECT count(*) FROM outbox.handler WHERE attached") == len(NAMES),
            "all handlers being attached",
        )
        assert self.errors == []

    def await_done(self, timeout: float = 60.0) -> None:
        """Wait until every event is done, then each must have had its effect exactly once."""
        wait_for(lambda: self.errors or self.value(DONE, len(NAMES)), "all being done", timeout)
        assert self.errors == []
        rows = self.sql.execute("SELECT handler, count(*), count(DISTINCT n) FROM effect GROUP BY 1").fetchall()
        assert sorted(rows) == [(f"on_{name}", self.added, self.added) for name in NAMES]


@pytest.fixture(name="wait_for")
def _wait_for() -> Callable[..., Any]:
    return wait_for


@pytest.fixture
def whole_path(database_url: str) -> Callable[[str], WholePath]:
    """A relay and a worker on a Redis URL: `with whole_path(url) as path: path.add(10); path.await_done()`."""

    def make(redis_url: str) -> WholePath:
        return WholePath(Settings(database_url=database_url, redis_url=redis_url, _env_file=None))  # type: ignore[arg-type]

    return make


class Cluster:
    """Three primaries with a third of the slots each, and a replica of the first."""

    def __init__(self, start: Callable[..., Redis]) -> None:
        # A node that comes back must still have what it was given: nothing here is to test an append-only file.
        options = {"cluster-enabled": "yes", "cluster-node-timeout": "1000", "appendfsync": "always"}
        self.nodes = [start(port=_port_of_a_node(), persistent=True, options=options) for _ in range(4)]
        self.clients = [redis.Redis.from_url(node.url) for node in self.nodes]
        ids = [client.execute_command("CLUSTER MYID").decode() for client in self.clients]
        for number, client in enumerate(self.clients[:3]):
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            # ADDSLOTSRANGE came with Redis 7.
            client.execute_command("CLUSTER ADDSLOTS", *range(16384 * number // 3, 16384 * (number + 1) // 3))
        for client in self.clients:
            for node in self.nodes:
                client.execute_command("CLUSTER MEET", "127.0.0.1", node.port)
        wait_for(lambda: all(map(self._knows_all, self.clients)), "the nodes knowing each other")
        self.clients[3].execute_command("CLUSTER REPLICATE", ids[0])
        self.ids = ids
        self.await_healthy()
        wait_for(lambda: self.clients[3].info()["master_link_status"] == "up", "the replica")

    @property
    def url(self) -> str:
        """The address, by two of its nodes."""
        return f"redis+cluster://127.0.0.1:{self.nodes[1].port},127.0.0.1:{self.nodes[2].port}"

    def await_healthy(self) -> None:
        """Wait until every node that runs says that all slots are served."""
        running = [client for node, client in zip(self.nodes, self.clients, strict=True) if node.process is not None]
        wait_for(lambda: all(cluster_state(client) == b"ok" for client in running), "the cluster being healthy")

    def owner(self, slot: int) -> int:
        """Which node serves a slot, as the second one sees it."""
        for first, last, (_, port, *_rest), *_replicas in self.clients[1].execute_command("CLUSTER SLOTS"):
            if first <= slot <= last:
                return [node.port for node in self.nodes].index(port)
        raise AssertionError(f"nobody serves slot {slot}")

    def move(self, slot: int, to: int) -> None:
        """Give a slot with its keys to another node, as `redis-cli --cluster reshard` does."""
        source = self.owner(slot)
        self.clients[to].execute_command("CLUSTER SETSLOT", slot, "IMPORTING", self.ids[source])
        self.clients[source].execute_command("CLUSTER SETSLOT", slot, "MIGRATING", self.ids[to])
        while keys := self.clients[source].execute_command("CLUSTER GETKEYSINSLOT", slot, 10):
            self.clients[source].execute_command(
                "MIGRATE", "127.0.0.1", self.nodes[to].port, "", 0, 5000, "KEYS", *keys
            )
        for number in (to, source, *{0, 1, 2} - {to, source}):
            self.clients[number].execute_command("CLUSTER SETSLOT", slot, "NODE", self.ids[to])

    def _knows_all(self, client: redis.Redis) -> bool:
        found: Any = client.execute_command("CLUSTER NODES")
        return len(found) == len(self.nodes) and not any("handshake" in node["flags"] for node in found.values())


def cluster_state(client: redis.Redis) -> Any:
    """What a node says of its cluster: `ok`, as bytes, when all slots are served."""
    found: Any = client.execute_command("CLUSTER INFO")
    state = found["cluster_state"]
    return state.encode() if isinstance(state, str) else state


def _port_of_a_node() -> int:
    """A free port such that the one 10,000 above, where a node's bus listens, is free too."""
    while True:
        with socket.socket() as probe, socket.socket() as bus:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):
                bus.bind(("127.0.0.1", port + 10_000))
                return port


class Terminator:
    """Takes TLS connections and carries them to a server: not every server that is tested was built with TLS.

    What comes without TLS is carried too: Sentinels reach a server where clients do. `encrypted` counts connections
    with TLS.
    """

    def __init__(self, target: int, context: ssl.SSLContext) -> None:
        self._target = target
        self._context = context
        self.encrypted = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._over: Callable[[], None] = lambda: None
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._accept(started)), daemon=True)
        self._thread.start()
        started.wait()

    async def _accept(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        over = asyncio.Event()
        self._over = lambda: self._loop.call_soon_threadsafe(over.set)
        started.set()
        # What is still being served when this ends is cancelled by `asyncio.run`.
        serving = {asyncio.create_task(self._accept_all()), asyncio.create_task(over.wait())}
        await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)

    async def _accept_all(self) -> None:
        serving: set[asyncio.Task[None]] = set()
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            task = asyncio.create_task(self._serve(client))
            serving.add(task)
            task.add_done_callback(serving.discard)

    async def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            await self._readable(client)
            hello = client.recv(1, socket.MSG_PEEK) == b"\x16"
            reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(reader)
            transport, _ = await self._loop.connect_accepted_socket(
                lambda: protocol, client, ssl=self._context if hello else None
            )
            self.encrypted += hello
            writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
            behind, before = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(self._carry(reader, before), self._carry(behind, writer))

    async def _readable(self, client: socket.socket) -> None:
        ready = asyncio.Event()
        self._loop.add_reader(client, ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_reader(client)

    @staticmethod
    async def _carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()

    def close(self) -> None:
        """Accept no more, and end what there is."""
        self._over()
        self._thread.join(timeout=10)
        self._listener.close()


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    """A certificate authority of this test's own; files of what it issues."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = authority.issue_cert("worker@example.test")
    issued.private_key_pem.write_to_path(str(tmp_path / "client.key"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "client.pem"))
    return authority


@pytest.fixture
def trust(authority: trustme.CA, tmp_path: Path) -> str:
    """Options of a URL: the authority to trust, and a certificate to show."""
    return f"ssl_ca_certs={tmp_path}/ca.pem&ssl_certfile={tmp_path}/client.pem&ssl_keyfile={tmp_path}/client.key"


@pytest.fixture
def encrypt(authority: trustme.CA) -> Iterator[Callable[[int], Terminator]]:
    """Stand before a server with TLS, for clients with a certificate: `encrypt(port)`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    made: list[Terminator] = []

    def stand_before(port: int) -> Terminator:
        made.append(Terminator(port, context))
        return made[-1]

    yield stand_before
    for terminator in made:
        terminator.close()


@pytest.fixture
def documented_rights() -> list[list[str]]:
    """The words of the ACL commands in the document: for every server, and what nodes of a cluster need besides."""
    found = re.findall(r"```redis\n(ACL SETUSER .*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    assert len(found) == 2
    return [command.split() for command in found]


@pytest.fixture
def assert_nothing_refused() -> Callable[[redis.Redis], None]:
    """See in a server's ACL log that the documented user was content with its rights."""

    def look(admin: redis.Redis) -> None:
        refused = {entry["object"] for entry in admin.acl_log() if entry["username"] == "outbox"}
        # The client's name and version, which it can do without. Redis 6.2 logs no more of it than "client".
        assert refused <= {"client|setinfo", "client"}

    return look


@pytest.fixture
def node_port() -> int:
    """A port for a node of a cluster."""
    return _port_of_a_node()


@pytest.fixture(name="cluster_state")
def _cluster_state() -> Callable[[redis.Redis], Any]:
    return cluster_state


@pytest.fixture
def two_node_ports() -> list[int]:
    """Ports for two nodes of a cluster."""
    ports: set[int] = set()
    while len(ports) < 2:
        ports.add(_port_of_a_node())
    return sorted(ports)


@pytest.fixture
def cluster(start_redis: Callable[..., Redis]) -> Iterator[Cluster]:
    """A cluster that is healthy."""
    made = Cluster(start_redis)
    yield made
    for client in made.clients:
        client.close()
