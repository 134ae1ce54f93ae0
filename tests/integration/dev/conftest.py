"""A developer's folder with an app in it, and `outbox dev` there."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from forking import Forked, Programs

from console.servers import Postgres

APP = """
import os
from workers import App, Context

app = App()


@app.handler("hello")
async def greet(name: str, context: Context) -> None:
    if name == "Nobody":
        raise LookupError(f"no such name: {name}")
    print(f"hello {name}, attempt {context.attempt}")


@app.handler("die")
async def die() -> None:
    os.kill(os.getpid(), 9)
"""

SLOW = """
import asyncio
from pathlib import Path
from workers import App, Context

app = App()


@app.handler("hello")
async def greet(name: str, context: Context) -> None:
    print(f"begins {name}, attempt {context.attempt}")
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    print(f"ends {name}, attempt {context.attempt}")
"""


class Desk:
    """A developer's folder, and the `outbox dev` that runs in it."""

    APP = APP
    SLOW = SLOW

    def __init__(self, programs: Programs, folder: Path, mark: Any) -> None:
        self.programs = programs
        self.folder = folder
        self.mark = mark
        self.started: list[Forked] = []
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OUTBOX_", "PG"))}
        self.environment = inherited | mark.variables | {"COLUMNS": "200", "TERM": "xterm"}
        self.environment.pop("NO_COLOR", None)
        self.out, self.err = folder / "out.log", folder / "err.log"
        self.write(APP)

    def at(self, folder: Path) -> Desk:
        """Another folder of the same developer."""
        return Desk(self.programs, folder, self.mark)

    @staticmethod
    def eventually(reached: Callable[[], Any], what: Callable[[], str] = lambda: "", seconds: float = 40) -> None:
        """Wait until it holds."""
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline, what()
            time.sleep(0.02)

    def write(self, text: str, name: str = "tasks.py") -> None:
        (self.folder / name).write_text(text)

    def furnish(self, cluster: Path) -> None:
        """Put a copy of a cluster where an earlier run's would be: that saves its initdb, of many times the cost."""
        there = self.folder / ".outbox/postgres"
        there.mkdir(parents=True)
        subprocess.run(["cp", "-a", cluster, there / "data"], check=True)

    def dev(self, *arguments: str, stdin: int | None = None, stderr: int | None = None) -> Forked:
        """Start `outbox dev`; what the one before it said is gone."""
        with self.out.open("wb") as out, self.err.open("wb") as err:
            process = self.programs.start(
                ["-m", "console.main", "dev", "tasks:app", *arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=stdin,
                stdout=out if stdin is None else stdin,
                stderr=err if stderr is None else stderr,
            )
        self.started.append(process)
        return process

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`outbox dev` that is expected to refuse."""
        return self.programs.run(["-m", "console.main", "dev", *arguments], cwd=self.folder, env=self.environment)

    @property
    def log(self) -> str:
        return self.err.read_text()

    def says(self, text: str, times: int = 1) -> None:
        """Wait until the log has this text so often."""
        self.eventually(lambda: self.log.count(text) >= times, lambda: f"not said {times}×: {text}\n{self.log}")

    def up(self, *arguments: str) -> Forked:
        process = self.dev(*arguments)
        self.says("worker.started")
        self.says("relay.leading")
        return process

    def exports(self) -> dict[str, str]:
        """What it tells other shells, read as a shell would."""
        words = [shlex.split(line) for line in self.out.read_text().splitlines()]
        assert all(word[0] == "export" and len(word) == 2 for word in words)
        return dict(word[1].split("=", 1) for word in words)  # type: ignore[misc]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.exports()["OUTBOX_DATABASE_URL"], autocommit=True) as connection:
            return connection.execute(query.encode()).fetchall()

    def add(self, name: str) -> None:
        self.rows(
            f"""INSERT INTO outbox.event (name, payload) VALUES ('hello', '{{"name": "{name}"}}') RETURNING seq"""
        )

    def states(self) -> list[str]:
        return [row[0] for row in self.rows("SELECT state FROM outbox.delivery")]

    def running(self) -> list[str]:
        """Processes that are still there: marked ones, and those that write over their environment but work here."""
        here = []
        for place in Path("/proc").iterdir():
            with suppress(OSError):
                if Path(os.readlink(place / "cwd")).is_relative_to(self.folder):
                    here.append(f"{place.name} {(place / 'cmdline').read_bytes()!r}")
        return here + list(self.mark.running())

    def assert_gone(self) -> None:
        self.eventually(lambda: not self.running(), lambda: str(self.running()), seconds=20)

    def stop(self, process: Forked, number: signal.Signals = signal.SIGINT) -> int:
        process.send_signal(number)
        return process.wait(timeout=30)


@pytest.fixture(scope="session")
def cluster(scratch: Path) -> Path:
    """A cluster that was made and never started."""
    made = Postgres(scratch / "cluster")
    made.folder.mkdir()
    made.prepare()
    return made.data


@pytest.fixture
def bare(programs: Programs, scratch: Path, mark: Any) -> Iterator[Desk]:
    """A folder in which `outbox dev` never ran."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    folder.chmod(0o755)
    made = Desk(programs, folder, mark)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
        process.kill()
        process.wait()
    made.assert_gone()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def desk(bare: Desk, cluster: Path) -> Desk:
    """A folder where the database was made before: tests whose subject is something else start sooner."""
    bare.furnish(cluster)
    return bare
