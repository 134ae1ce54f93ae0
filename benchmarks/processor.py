"""Processor time of processes and threads, as Linux counts it: user and system, in steps of a hundredth of a second."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks.testbed import Testbed
from outbox.errors import ConfigurationError


@dataclass(frozen=True)
class Spent:
    """Seconds of processor time that a relay has cost so far: its sweep, and everything else it does.

    Each is the sum of its threads, its PostgreSQL backend and its commands in Redis.
    """

    sweep: float
    rest: float

    def __sub__(self, earlier: Spent) -> Spent:
        return Spent(self.sweep - earlier.sweep, self.rest - earlier.rest)

    @property
    def share(self) -> float:
        """The sweep as a share of the rest."""
        return self.sweep / self.rest


def process_seconds(pid: int) -> float:
    """What a process has used, all of its threads together."""
    return _seconds(Path(f"/proc/{pid}/stat"))


def thread_seconds(pid: int, name: str) -> float:
    """What the threads of that name have used."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(_seconds(task / "stat") for task in tasks if (task / "comm").read_text().strip() == name)


def spent(bed: Testbed, database: str, pid: int) -> Spent:
    """What the relay with this process id has cost. Raises `ConfigurationError` where there is no /proc to read."""
    if not Path("/proc/self/stat").exists():
        raise ConfigurationError("processor time is read from /proc, which only Linux has")
    with bed.connect(database) as connection:
        query = "SELECT application_name, pid FROM pg_stat_activity WHERE application_name LIKE 'outbox %'"
        backends: dict[str, int] = dict(connection.execute(query).fetchall())
    sweep = thread_seconds(pid, "sweep")
    commands = bed.redis.info("commandstats")
    return Spent(
        sweep + process_seconds(backends["outbox sweep outbox"]) + _redis_seconds(commands, "eval", "xtrim"),
        process_seconds(pid)
        - sweep
        + process_seconds(backends["outbox relay outbox"])
        + _redis_seconds(commands, "evalsha"),
    )


def _redis_seconds(commands: dict[str, dict[str, int]], *names: str) -> float:
    return sum(commands.get(f"cmdstat_{name}", {}).get("usec", 0) for name in names) / 1e6


def _seconds(stat: Path) -> float:
    # The second field is a name in brackets, which may hold spaces; user and system time are fields 14 and 15.
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
