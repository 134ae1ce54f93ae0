"""The programs that are measured, each a process of its own with its log in a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.rounds import MeasurementError
from console.servers import Server

ROOT = Path(__file__).resolve().parent.parent


class Program(Server):
    """A Python process with `arguments` that counts as started at once; stopped with SIGTERM when the context is left.

    >>> with Program("relay", ["-m", "console.main", "relay"], folder=folder, settings=bed.settings("bench")):
    ...     measure()
    """

    directory = ROOT

    def __init__(self, name: str, arguments: Sequence[str], *, folder: Path, settings: Mapping[str, str]) -> None:
        super().__init__(folder)
        self.name = name
        self.arguments = list(arguments)
        self.environment = {**os.environ, **settings}

    def command(self) -> list[str]:
        return [sys.executable, *self.arguments]

    def answers(self) -> bool:
        return True

    def running(self) -> bool:
        """Whether it still runs. Raises `MeasurementError` with the end of its log when it has failed."""
        if self.process is None or self.process.poll() == 0:
            return False
        if self.process.returncode is not None:
            raise self.failure(f"ended with status {self.process.returncode}")
        return True

    def failure(self, what: str) -> MeasurementError:
        """The error to raise when it did not do its work, with the end of its log."""
        return MeasurementError(f"{self.name}: {what}\n{self._tail()}")

    def peak_memory(self) -> float | None:
        """The most memory it had resident so far, in MiB; None where the kernel does not tell."""
        return self._mebibytes("VmHWM")

    def memory(self) -> float | None:
        """The memory that it has resident now, in MiB; None where the kernel does not tell."""
        return self._mebibytes("VmRSS")

    def _mebibytes(self, line_of: str) -> float | None:
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return None
        sizes = [line.split()[1] for line in status.splitlines() if line.startswith(f"{line_of}:")]
        return int(sizes[0]) / 1024 if sizes else None
