"""One server, reached through TLS, a unix socket, or as a user with few rights."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme

from console.servers import Redis
from outbox.redis import connect


class Terminator:
    """Takes TLS connections and carries them to a server: not every server that is tested was built with TLS."""

    def __init__(self, target: int, context: ssl.SSLContext) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, before = await asyncio.open_connection("127.0.0.1", self._target)
        await asyncio.gather(self._carry(reader, before), self._carry(behind, writer))

    @staticmethod
    async def _carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)


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
def encrypted(redis_server: Redis, authority: trustme.CA) -> Iterator[str]:
    """The address of a Redis that only takes clients with a certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    terminator = Terminator(redis_server.port, context)
    yield f"rediss://127.0.0.1:{terminator.port}/0"
    terminator.close()


def test_tls_with_an_own_authority_and_a_client_certificate(
    encrypted: str, tmp_path: Path, whole_path: Callable[[str], Any]
) -> None:
    options = f"ssl_ca_certs={tmp_path}/ca.pem&ssl_certfile={tmp_path}/client.pem&ssl_keyfile={tmp_path}/client.key"
    with whole_path(f"{encrypted}?{options}") as path:
        path.add(20)
        path.await_done()


def test_a_server_whose_certificate_nobody_vouches_for_is_not_talked_to(encrypted: str) -> None:
    with connect(encrypted, timeout=3) as client, pytest.raises(redis.ConnectionError, match="certificate"):
        client.ping()


def test_a_unix_socket(start_redis: Callable[..., Redis], scratch: Path, whole_path: Callable[[str], Any]) -> None:
    place = scratch / "redis.sock"
    start_redis(options={"unixsocket": str(place)})
    with whole_path(f"unix://{place}?db=1") as path:
        path.add(20)
        path.await_done()


def test_the_documented_rights_are_enough_for_relay_and_worker(
    redis_server: Redis,
    documented_rights: list[list[str]],
    assert_nothing_refused: Callable[[redis.Redis], None],
    whole_path: Callable[[str], Any],
) -> None:
    with redis.Redis.from_url(redis_server.url) as admin:
        admin.execute_command(*documented_rights[0])
        url = redis_server.url.replace("://", "://outbox:password@")
        with whole_path(url) as path:
            path.add(20)
            path.await_done()
            path.await_attached()
            path.add(20)
            path.await_done()
            # Groups that are lost are made anew under the same rights.
            admin.flushall()
            path.add(20)
            path.await_done()
        with whole_path(url) as again:
            again.added = path.added
            again.add(20)
            again.await_done()
        assert_nothing_refused(admin)


def test_the_documented_rights_reach_no_other_keys(redis_server: Redis, documented_rights: list[list[str]]) -> None:
    with redis.Redis.from_url(redis_server.url) as admin:
        admin.execute_command(*documented_rights[0])
    with (
        redis.Redis.from_url(redis_server.url, username="outbox", password="password") as client,
        pytest.raises(redis.ResponseError, match=r"(?i)permission"),
    ):
        client.set("others:key", "1")
