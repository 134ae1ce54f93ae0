"""Servers from wheels start wherever the wheels are installed, and none is forgotten."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from console import servers
from console.servers import Postgres, Redis


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: the path of a socket must be short.
    made = Path(tempfile.mkdtemp(prefix="obx-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def test_postgres_starts_from_a_folder_that_other_users_cannot_enter(folder: Path) -> None:
    install = Postgres(folder / "unused").bin.parent
    package = install.parent
    closed = folder / "closed"
    shutil.copytree(install, closed / package.name / install.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, closed / libraries.name, symlinks=True)
    closed.chmod(0o700)
    with (
        Postgres(folder / "server", bin_dir=closed / package.name / install.name / "bin") as server,
        psycopg.connect(server.url()) as connection,
    ):
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_signal_that_comes_while_a_server_is_forked_interrupts_when_the_server_is_known(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    us, dies_with_parent = os.getpid(), servers._die_with_parent

    def interrupting() -> Callable[[], None]:
        hook = dies_with_parent()

        def in_the_child() -> None:
            if hook is not None:
                hook()
            os.kill(us, signal.SIGINT)

        return in_the_child

    monkeypatch.setattr(servers, "_die_with_parent", interrupting)
    server = Redis(folder / "redis")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            server.launch()
        assert server.process is not None
        server.await_ready()
    finally:
        signal.signal(signal.SIGINT, before)
        server.stop()
