"""Proxies before servers, for faults of the network; a mark by which a program's processes are found."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.proxy import Proxy, Target, place


@pytest.fixture
def open_proxy() -> Iterator[Callable[[Target], Proxy]]:
    """Stand before a server: `open_proxy(port)` or `open_proxy(path of a unix socket)`."""
    opened: list[Proxy] = []

    def make(target: Target) -> Proxy:
        opened.append(Proxy(target))
        return opened[-1]

    yield make
    for proxy in opened:
        proxy.close()


@pytest.fixture
def database_proxy(database_url: str, open_proxy: Callable[[Target], Proxy]) -> tuple[Proxy, str]:
    """A proxy before PostgreSQL, and this test's database through it."""
    target, database = place(database_url)
    proxy = open_proxy(target)
    user = urlsplit(database_url).netloc.rpartition("@")[0]
    return proxy, f"postgresql://{user}@127.0.0.1:{proxy.port}/{database}"


SETTLE = 15.0
"""Seconds within which processes that were told to end are gone."""


class Mark:
    """A variable in the environment of a program, by which all of its processes are found."""

    def __init__(self) -> None:
        self.variables = {"PROCESS_OF_TEST": uuid.uuid4().hex}

    def running(self) -> list[str]:
        """Command lines of the processes that are still there."""
        found = []
        mark = "".join(f"{name}={value}" for name, value in self.variables.items()).encode()
        for process in Path("/proc").iterdir():
            try:
                if mark in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found

    def assert_gone(self) -> None:
        """Wait until there is none."""
        deadline = time.monotonic() + SETTLE
        while left := self.running():
            assert time.monotonic() < deadline, left
            time.sleep(0.05)


@pytest.fixture
def mark() -> Mark:
    """Put its `variables` into a program's environment."""
    return Mark()
