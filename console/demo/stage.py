"""The cast of the demo, each a real process: PostgreSQL, Valkey, the shop's API, two relays, two workers."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

import console
from console.servers import Postgres, Redis, Server, free_port
from outbox import migrations
from outbox.errors import UnusableError
from outbox.settings import Settings


def examples_folder() -> Path:
    """The folder that holds the package `shop`: the checkout's `examples`, or the copy inside an installed package.

    Raises `UnusableError` when there is neither.
    """
    package = Path(console.__file__).parent
    for folder in (package / "examples", package.parent / "examples"):
        if (folder / "shop" / "tasks.py").exists():
            return folder
    raise UnusableError("the demo's shop is missing: run `make demo` in a checkout, or reinstall the package")


class Program(Server):
    """One of our own programs: a Python module run by this interpreter."""

    def __init__(
        self, folder: Path, name: str, arguments: list[str], environment: dict[str, str], ready: Callable[[], bool]
    ) -> None:
        super().__init__(folder)
        self.name = name
        self.arguments = arguments
        self.environment = environment
        self.directory = examples_folder()
        self._ready = ready

    def command(self) -> list[str]:
        return [sys.executable, "-m", *self.arguments]

    def answers(self) -> bool:
        return self._ready()


class Stage:
    """Everything the demo needs, up and running inside the `with` block, gone after it, whatever happened in it.

    >>> with Stage() as stage:
    ...     stage.relays[0].kill()
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="outbox-demo-"))
        # PostgreSQL runs as another user when this one is root.
        self.folder.chmod(0o755)
        self.postgres = Postgres(self.folder / "postgres", options={"max_connections": "200"})
        self.redis = Redis(self.folder / "redis")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        # Customers hang up after 5 s of silence; were it the API, a request could cross its hanging up.
        uvicorn = [
            "uvicorn",
            "shop.api:app",
            "--port",
            str(port),
            "--timeout-keep-alive",
            "30",
            "--log-level",
            "warning",
        ]
        self.api = self._program("api", uvicorn, ready=self._api_answers)
        self.relays = [self._program(f"relay-{number}", ["console.main", "relay"]) for number in (1, 2)]
        self.workers = [
            self._program(f"worker-{number}", ["console.main", "worker", "shop.tasks:app"]) for number in (1, 2)
        ]

    @property
    def programs(self) -> list[Program]:
        """Our own processes."""
        return [self.api, *self.workers, *self.relays]

    def fallen(self) -> list[str]:
        """The names of the processes that ended by themselves."""
        return [program.name for program in self.programs if program.process and program.process.poll() is not None]

    @property
    def settings(self) -> Settings:
        """Settings of this stage, whatever the environment says."""
        return Settings(database_url=self.postgres.url(), redis_url=self.redis.url, _env_file=None)

    @property
    def environment(self) -> dict[str, str]:
        """The variables a shell needs to talk to this stage."""
        return {"OUTBOX_DATABASE_URL": self.postgres.url(), "OUTBOX_REDIS_URL": self.redis.url}

    def __enter__(self) -> Self:
        try:
            self.redis.start()
            self.postgres.start()
            migrations.apply(self.postgres.url())
            for program in self.programs:
                program.launch()
            for program in self.programs:
                program.await_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process and remove the folder. A second Ctrl-C does not stop it half-way."""
        with _deaf():
            with ThreadPoolExecutor() as at_once:
                list(at_once.map(lambda program: program.stop(), self.programs))
            self.postgres.stop()
            self.redis.stop()
            shutil.rmtree(self.folder, ignore_errors=True)

    def logs(self, lines: int = 10) -> Iterator[tuple[str, str]]:
        """The end of every program's log, by its name."""
        for program in self.programs:
            if program.log.exists():
                yield program.name, "\n".join(program.log.read_text(errors="replace").splitlines()[-lines:])

    def _program(self, name: str, arguments: list[str], ready: Callable[[], bool] = lambda: True) -> Program:
        # Nothing of the caller's own set-up may lead the demo to another database.
        inherited = {n: value for n, value in os.environ.items() if not n.startswith(("OUTBOX_", "PG"))}
        environment = inherited | self.environment | {"OUTBOX_LOG_FORMAT": "logfmt", "PYTHONUNBUFFERED": "1"}
        return Program(self.folder / "logs", name, arguments, environment, ready)

    def _api_answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=2, trust_env=False).is_success
        except httpx.TransportError:
            return False


@contextmanager
def _deaf() -> Iterator[None]:
    """Ignore requests to end: this is the end already, and takes seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
