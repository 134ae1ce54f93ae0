"""Everything at once: servers, migrations, a relay, a worker that follows the code; and its orderly end."""

from __future__ import annotations

import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import cache_from_source
from pathlib import Path
from types import FrameType

from console.dev import child, warnings
from console.dev.addresses import Addresses
from console.dev.folder import Folder, refuse_taken
from console.dev.log import Log
from console.faults import explained
from console.servers import Postgres, Redis, Server, ServerError
from outbox import migrations
from outbox.address import parse
from outbox.database import redacted
from workers.service import MISCONFIGURED

LINGERING = 10.0
"""Seconds that what is left of a killed PostgreSQL may take to be gone."""

STILL_THERE = ("still in use", '" already exists')
"""What PostgreSQL says then: of the memory that its processes share, and of its lock files."""

SERVERS_END = 15.0
"""Seconds that a server has to stop before it is killed."""


class Development:
    """Servers, relay and worker for `target` (`module:name`), until a signal.

    `reload` are the folders whose Python files are watched; none: the worker is not started again when they change.
    Runs in the main thread, as it handles signals and the servers end with the thread that starts them.

    >>> Development("shop.tasks:app", addresses, folder, log, reload=[Path.cwd()]).run()
    0
    """

    def __init__(
        self,
        target: str,
        addresses: Addresses,
        folder: Folder,
        log: Log,
        *,
        reload: Sequence[Path] = (),
        concurrency: int | None = None,
    ) -> None:
        self._addresses = addresses
        self._folder = folder
        self._log = log
        self._reload = reload
        self._servers: list[Server] = []
        self._unfollow: list[Callable[[], None]] = []
        self._relay = child.relay(addresses.settings, log)
        self._worker = child.Worker(target, addresses.settings, log, concurrency=concurrency, waits=bool(reload))
        self._changes: queue.SimpleQueue[set[Path]] = queue.SimpleQueue()
        self._watching = threading.Event()
        self._signals = 0
        self._starting = True
        log.lost = self._reader_is_gone

    def run(self) -> int:
        """Serve until signalled, and return the exit status: 0, 1 when something ended by itself, or 2
        when that was a worker whose application is wrong.

        Raises what kept the servers from starting.
        """
        with self._signalled():
            try:
                self._start()
                self._starting = False
                return self._serve()
            except KeyboardInterrupt:
                return 0
            finally:
                self._starting = False
                self._stop()

    # Starting

    def _start(self) -> None:
        if self._reload:
            threading.Thread(target=self._watch, daemon=True).start()
        if self._addresses.valkey is not None:
            refuse_taken(self._addresses.valkey)
            valkey = Redis(
                self._folder.valkey, port=self._addresses.valkey, persistent=True, options=warnings.VALKEY_OPTIONS
            )
            self._begin("valkey", valkey, warnings.valkey)
        if self._addresses.postgres:
            self._folder.prepare_sockets()
            postgres = Postgres(self._folder.postgres, options=warnings.POSTGRES_OPTIONS, sockets=self._folder.sockets)
            self._begin("postgres", postgres, warnings.Postgres())
        settings = self._addresses.settings
        self._log.say(self._where())
        migrations.apply(settings.libpq_url(direct=True), settings.schema_name, progress=self._log.say)
        exports = list(self._addresses.exports())
        if exports:
            self._log.say("for your other shells:")
            sys.stdout.write("".join(f"{line}\n" for line in exports))
            sys.stdout.flush()
        self._relay.start()
        self._worker.start()

    def _begin(self, name: str, server: Server, shown: Callable[[str], warnings.Line | None]) -> None:
        self._servers.append(server)
        deadline = time.monotonic() + LINGERING
        server.launch()
        while True:
            try:
                server.await_ready()
                break
            except ServerError as error:
                # Processes of one that was killed a moment ago hold its memory until they notice.
                if any(sign in str(error) for sign in STILL_THERE) and time.monotonic() < deadline:
                    time.sleep(0.1)
                    server.launch()
                    continue
                raise ServerError(
                    f"{error}\nthe whole log is {server.log}; `outbox dev --reset` begins anew with no data"
                ) from None
        file = server.log.open("rb")
        file.seek(0, 2)
        self._unfollow.append(self._log.follow(name, file, shown))

    def _where(self) -> str:
        settings, ours = self._addresses.settings, []
        said = []
        if self._addresses.postgres:
            ours.append("PostgreSQL")
        else:
            said.append(f"PostgreSQL is {redacted(settings.libpq_url())}")
        if self._addresses.valkey is not None:
            ours.append("Valkey")
        else:
            said.append(f"Redis is {parse(settings.redis_url.get_secret_value())}")
        if ours:
            said.insert(0, f"{' and '.join(ours)} keep their data in {self._folder.path}")
        return "; ".join(said)

    # Serving

    def _serve(self) -> int:
        while not self._signals:
            with suppress(queue.Empty):
                self._changed(self._changes.get(timeout=0.1))
            for server in self._servers:
                if server.process is not None and (status := server.process.poll()) is not None:
                    self._log.say(f"{server.name} was ended by {child.ended_by(status)}: see {server.log}", "error")
                    return 1
            if (status := self._relay.status()) is not None:
                self._log.say(f"the relay was ended by {child.ended_by(status)}", "error")
                return 1
            if (status := self._worker.tend()) is not None:
                self._log.say(f"the worker was ended by {child.ended_by(status)}", "error")
                return status if status == MISCONFIGURED else 1
        return 0

    def _changed(self, files: set[Path]) -> None:
        for file in files:
            # Two versions of one size within a second are one to Python's cache.
            with suppress(OSError, NotImplementedError):
                Path(cache_from_source(str(file))).unlink()
        shown = sorted(_short(file) for file in files)
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        self._log.say(f"{', '.join(shown[:3])}{more} changed: the worker starts again")
        self._worker.restart()

    def _watch(self) -> None:
        from console.dev import watch

        try:
            for files in watch.changes(self._reload, self._watching):
                self._changes.put(files)
        except Exception as error:
            said = explained(error) or f"{type(error).__name__}: {error}"
            self._log.say(f"changes are not noticed any more: {said}", "error")

    # Stopping

    def _stop(self) -> None:
        self._watching.set()
        for unfollow in self._unfollow:
            unfollow()
        if self._relay.process is not None:
            self._log.say("stopping; Ctrl-C once more ends all at once")
        self._end_child(self._worker.child, child.GRACE + child.HURRY)
        self._end_child(self._relay, child.HURRY)
        for server in reversed(self._servers):
            self._end(server)
        if self._relay.process is not None:
            self._log.say("stopped")

    def _end_child(self, each: child.Child, seconds: float) -> None:
        each.terminate()
        if not self._until(lambda: not each.running, seconds):
            each.kill()
        each.wait()

    def _end(self, server: Server) -> None:
        process = server.process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            if not self._until(lambda: process.poll() is not None, SERVERS_END):
                # PostgreSQL ends its own processes then; whatever else it is, it ends.
                process.send_signal(signal.SIGQUIT if isinstance(server, Postgres) else signal.SIGKILL)
        server.stop()

    def _until(self, reached: Callable[[], bool], seconds: float) -> bool:
        """Whether it came to be within so many seconds; a second signal ends the waiting."""
        deadline = time.monotonic() + seconds
        while not reached():
            if self._signals > 1 or time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    # Signals

    @contextmanager
    def _signalled(self) -> Iterator[None]:
        def handle(number: int, frame: FrameType | None) -> None:
            self._signals += 1
            if self._starting:
                raise KeyboardInterrupt

        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            # Not under nohup.
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _reader_is_gone(self) -> None:
        self._signals += 1


def _short(file: Path) -> str:
    with suppress(ValueError):
        return str(file.relative_to(Path.cwd()))
    return str(file)
