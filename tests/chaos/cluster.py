"""The cluster of one run: servers and programs as processes, and the ways between them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
import redis

from console.servers import Postgres, Redis, Server, ServerError, loopback_url
from outbox.redis import connect
from tests.chaos.process import Program
from tests.chaos.programs import Part
from tests.chaos.schedule import PROGRAMS, WRITERS, Schedule
from tests.chaos.template import DATABASE, POSTGRES, Template
from tests.proxy import Proxy

DISKS = {"postgres": "256m", "redis": "16m"}
"""Sizes of the disks of servers whose disk is to be full."""


class Cluster:
    """PostgreSQL, Valkey (and its replica), relays, workers and writers. It begins with a copy of `template`.

    `mutant` is what relays and workers are instead of themselves. `log` gets what happens, as (what, facts).
    """

    def __init__(self, folder: Path, template: Template, schedule: Schedule, *, mutant: str = "") -> None:
        self.folder = folder
        self.schedule = schedule
        self.histories = folder / "histories"
        self.fallen: list[str] = []
        """Programs that ended by themselves, with their exit status."""
        self.crashes = 0
        """How often PostgreSQL lost what it had not flushed."""
        self.skipped: dict[str, str] = {}
        """Kinds of faults that are not possible here, and why."""
        self._disks: list[Path] = []
        self._template = template
        self.postgres = Postgres(folder / "postgres", bin_dir=template.programs, durable=False, options=POSTGRES)
        self.primary = self._redis("redis-1")
        self.replica = self._redis("redis-2") if schedule.replica else None
        self.replication: Proxy | None = None
        self.proxies: dict[str, Proxy] = {}
        self.programs = {name: Program(self._part(name, mutant)) for name in PROGRAMS}

    def _redis(self, name: str) -> Redis:
        kept = self.schedule.persistence
        options = {"repl-diskless-sync-delay": "0", "enable-debug-command": "yes", "auto-aof-rewrite-percentage": "0"}
        if kept != "none":
            options["appendfsync"] = kept
        return Redis(self.folder / name, persistent=kept != "none", options=options)

    def _part(self, name: str, mutant: str) -> Part:
        schedule = self.schedule
        return Part(
            name,
            database_url=self.postgres.url(DATABASE),
            redis_url=self.primary.url,
            folder=self.histories,
            lease=schedule.lease,
            concurrency=schedule.concurrency,
            rate=schedule.rate / len(WRITERS),
            slowness=schedule.slowness,
            children=schedule.children,
            supervised=name in schedule.supervised,
            knobs=schedule.knobs,
            mutant=mutant,
        )

    # Life

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        self.histories.mkdir(parents=True)
        if self.schedule.has("postgres disk full"):
            self._mount(self.postgres.folder, "postgres disk full", DISKS["postgres"])
        if self.schedule.has("redis disk full"):
            self._mount(self.primary.folder, "redis disk full", DISKS["redis"])
        self.postgres.folder.mkdir(exist_ok=True)
        # With its owner, who is another user when this one is root.
        subprocess.run(["cp", "-a", self._template.data, self.postgres.data], check=True)
        self.postgres.launch()
        self.primary.launch()
        if self.replica is not None:
            self.replica.launch()
        self.primary.await_ready()
        self.postgres.await_ready()
        if self.replica is not None:
            self.replica.await_ready()
            self.follow()
        for link in sorted(self.schedule.links):
            self._lead_through_a_proxy(link)
        for program in self.programs.values():
            program.start()
        self._await_handlers()

    def _await_handlers(self) -> None:
        """Wait until workers have made their handlers known: what happens before is the same in every run."""
        deadline = time.monotonic() + 30.0
        with self.sql() as connection:
            while connection.execute("SELECT count(*) = 0 FROM outbox.handler").fetchone() == (True,):
                if time.monotonic() > deadline:
                    raise ServerError("no worker has started")
                time.sleep(0.02)

    def _lead_through_a_proxy(self, link: str) -> None:
        name, server = link.split("/")
        program = self.programs[name]
        if server == "redis":
            proxy = Proxy(self.primary.port)
            program.part = replace(program.part, redis_url=loopback_url(proxy.port))
        else:
            proxy = Proxy(self.postgres.sockets / ".s.PGSQL.5432")
            url = f"postgresql://postgres@127.0.0.1:{proxy.port}/{DATABASE}"
            program.part = replace(program.part, database_url=url)
        self.proxies[link] = proxy

    def _mount(self, place: Path, kind: str, size: str) -> None:
        place.mkdir(parents=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "none", place],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            self.skipped[kind] = f"no small disk can be mounted here: {done.stderr.strip()}"
        else:
            self._disks.append(place)

    def end_programs(self) -> None:
        """Kill all of our own programs: nothing changes any more."""
        for program in self.programs.values():
            program.wanted = False
            program.send(signal.SIGKILL)
        for program in self.programs.values():
            program.await_end(10.0)

    def close(self) -> None:
        """End everything. Histories and logs stay."""
        self.end_programs()
        for proxy in [*self.proxies.values(), *([self.replication] if self.replication else [])]:
            proxy.close()
        self.postgres.kill()
        self.primary.kill()
        if self.replica is not None:
            self.replica.kill()
        for place in self._disks:
            subprocess.run(["umount", "--lazy", place], check=False, capture_output=True)
        shutil.rmtree(self.postgres.folder, ignore_errors=True)

    # What faults and the run ask for

    def sql(self) -> psycopg.Connection:
        """A connection to the database, past all proxies."""
        return psycopg.connect(self.postgres.url(DATABASE), autocommit=True, connect_timeout=3)

    def redis(self) -> redis.Redis:
        """A client of the primary, past all proxies."""
        return connect(self.primary.url, timeout=1.0, connect_timeout=1.0)

    def follow(self) -> None:
        """Let the replica copy the primary, over a way that can be held."""
        assert self.replica is not None
        if self.replication is not None:
            self.replication.close()
        self.replication = Proxy(self.primary.port)
        with connect(self.replica.url, timeout=5.0) as client:
            client.replicaof("127.0.0.1", str(self.replication.port))

    def promote(self, *, split: bool) -> None:
        """Make the replica the primary. The old one follows it: empty, or at once and with its clients, if `split`."""
        assert self.replica is not None
        assert self.replication is not None
        old, self.primary = self.primary, self.replica
        self.replica = old
        self.replication.close()
        with connect(self.primary.url, timeout=5.0) as client:
            client.replicaof("NO", "ONE")
        for link, proxy in self.proxies.items():
            if link.endswith("/redis"):
                proxy.target = self.primary.port
        if not split:
            old.kill()
            self.forget_files(old)
            old.start()
            for link, proxy in self.proxies.items():
                if link.endswith("/redis"):
                    proxy.cut()
        self.follow()

    @staticmethod
    def forget_files(server: Redis) -> None:
        """Delete what a Redis that does not run would load."""
        shutil.rmtree(server.folder / "appendonlydir", ignore_errors=True)
        (server.folder / "dump.rdb").unlink(missing_ok=True)

    def start_postgres(self, *, within: float = 3.0) -> None:
        """Start PostgreSQL if it is down; what is left of the last one may be in the way for a moment."""
        if runs(self.postgres):
            return
        deadline = time.monotonic() + within
        while True:
            try:
                self.postgres.start()
                return
            except ServerError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def start_redis(self) -> None:
        """Start what is down of Redis."""
        for server in (self.primary, self.replica):
            if server is not None and not runs(server):
                server.start()

    def tend(self) -> None:
        """Start again what ended by itself, and note it, unless it was told to die between two steps."""
        for name, program in self.programs.items():
            if not program.wanted or program.running:
                continue
            assert program.process is not None
            status = program.process.exitcode
            if not program.told and not (program.armed and status == -signal.SIGKILL):
                self.fallen.append(f"{name} ended by itself with status {status}")
            program.part = replace(program.part, failpoints="")
            program.start()

    def mend(self) -> None:
        """Everything runs, goes on and reaches everything, but for those who are lame: these stand still."""
        if not runs(self.postgres):
            self.crashes += 1
        for server in (self.postgres, self.primary, self.replica):
            if server is not None:
                let_go_on(server)
        self.start_postgres(within=20.0)
        self.start_redis()
        for server in (self.primary, self.replica):
            if server is not None:
                with connect(server.url, timeout=20.0) as client:
                    client.config_set("maxmemory", 0)
                    client.config_set("maxmemory-policy", "noeviction")
        for proxy in self.proxies.values():
            proxy.heal()
        for name, program in self.programs.items():
            program.part = replace(program.part, failpoints="")
            if program.armed:
                # It would stand still when nobody makes it go on any more.
                program.kill()
            program.start()
            if name in self.schedule.lame:
                program.stand_still()
            else:
                program.go_on()


def runs(server: Server) -> bool:
    """Whether a server has a process, be it one that stands still."""
    return server.process is not None and server.process.poll() is None


def let_go_on(server: Server) -> None:
    """SIGCONT for a server and all of its processes."""
    for pid in processes(server):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def processes(server: Server) -> list[int]:
    """The process of a server and its children."""
    if not runs(server):
        return []
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()
    return [server.pid, *map(int, children.split())]
