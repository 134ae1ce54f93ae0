"""Servers from wheels start wherever the wheels are installed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from console.servers import Postgres


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
