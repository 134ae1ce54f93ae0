"""What Redis itself can take in: `redis-benchmark -P 100` with the XADD of one entry, again and again."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Mapping

from benchmarks.rounds import MeasurementError
from outbox.errors import ConfigurationError


def program() -> str:
    """Where redis-benchmark is. Raises `ConfigurationError` with what to install."""
    found = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    if found is None:
        raise ConfigurationError(
            "redis-benchmark is not installed: it comes with the package redis-tools (Debian, Ubuntu)"
        )
    return found


def entries_per_second(port: int, stream: str, entry: Mapping[bytes, bytes], *, count: int) -> float:
    """Append `entry` to `stream` `count` times from 50 connections, 100 commands in flight on each."""
    fields = [part for pair in entry.items() for part in pair]
    done = subprocess.run(
        [program(), "-p", str(port), "-P", "100", "-n", str(count), "--csv", "XADD", stream, "*", *fields],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    # The first column holds the command with the payload's own quotes; the figures follow it, the rate first.
    rows = [row for row in csv.reader(done.stdout.splitlines()) if row]
    if done.returncode != 0 or len(rows) < 2:
        raise MeasurementError(f"redis-benchmark failed:\n{done.stderr or done.stdout}")
    return float(rows[-1][rows[0].index("rps") - len(rows[0])])
