"""What an event costs the transaction that writes it: commits per second of 32 writers, with pgbench."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.resources import files
from pathlib import Path

from benchmarks.report import Report, ratio
from benchmarks.rounds import MeasurementError, in_turns, say, wait_until
from benchmarks.testbed import Testbed, testbed

DATABASE = "bench"
CLIENTS = 32

GATED = "gated trigger, relay awake"
ASLEEP = "gated trigger, relay asleep for ever"
PLAIN = "no trigger"
NOTIFY = "NOTIFY in every transaction"


def run(*, repeat: int, quick: bool) -> Report:
    """Measure all variants for ten seconds each (`quick`: two), `repeat` times in turns."""
    seconds = 2 if quick else 10
    with testbed() as bed:
        say(f"write: {CLIENTS} clients, {seconds} s a run")
        prepare(bed)
        variants: dict[str, Callable[[], float]] = {
            GATED: partial(commits_per_second, bed, seconds, trigger="wake_relay"),
            PLAIN: partial(commits_per_second, bed, seconds, trigger=None),
            NOTIFY: partial(commits_per_second, bed, seconds, trigger="notify_always", listener=True),
            ASLEEP: partial(commits_per_second, bed, seconds, trigger="wake_relay", listener=True, asleep=True),
        }
        # The first run of a new server makes its WAL files.
        commits_per_second(bed, seconds, trigger=None)
        sides = in_turns("commits/s", variants, repeat)
    return Report(
        name="write",
        title=f"Write path: pgbench, {CLIENTS} clients, a business row and an event row in each transaction",
        sides=tuple(sides.values()),
        figures=(
            ratio("ratio_plain", "gated trigger / no trigger", sides[GATED], sides[PLAIN], 0.85),
            ratio("ratio_notify", "gated trigger / NOTIFY always", sides[GATED], sides[NOTIFY]),
            ratio("ratio_asleep", "relay asleep for ever / no trigger", sides[ASLEEP], sides[PLAIN]),
        ),
        notes=("Asleep for ever is the worst moment held still: a relay that is notified wakes and clears the flag.",),
        details={"clients": CLIENTS, "seconds": seconds},
    )


def prepare(bed: Testbed) -> None:
    """A migrated database with the business table and the trigger to compare with."""
    bed.create(DATABASE)
    with bed.connect(DATABASE) as connection:
        connection.execute((files(__package__) / "write_setup.sql").read_bytes())


def commits_per_second(
    bed: Testbed, seconds: int, *, trigger: str | None, listener: bool = False, asleep: bool = False
) -> float:
    """One run of pgbench on empty tables, with only `trigger` enabled."""
    with bed.connect(DATABASE) as connection:
        connection.execute("TRUNCATE purchase, outbox.event")
        connection.execute("ALTER TABLE outbox.event DISABLE TRIGGER USER")
        if trigger:
            connection.execute(f"ALTER TABLE outbox.event ENABLE TRIGGER {trigger}")
        until = "extract(epoch FROM now())::bigint + 3600" if asleep else "1"
        connection.execute(f"SELECT setval('outbox.asleep', {until})")
        connection.execute("CHECKPOINT")
        with ExitStack() as stack:
            if listener:
                stack.enter_context(bed.module("listener", "outbox", database=DATABASE))
                listening = "SELECT FROM pg_stat_activity WHERE application_name = 'listener' AND query LIKE 'LISTEN%'"
                wait_until(lambda: bool(connection.execute(listening).fetchall()), "the listener connects", timeout=20)
            return pgbench(bed, seconds)


def pgbench(bed: Testbed, seconds: int) -> float:
    """Transactions per second, without the time to connect."""
    script = Path(str(files(__package__) / "write.sql"))
    done = subprocess.run(
        [bed.postgres.bin / "pgbench", "--no-vacuum", "--protocol=prepared", f"--client={CLIENTS}", "--jobs=4",
         f"--time={seconds}", f"--file={script}",
         "--host", bed.postgres.folder / "socket", "--username=postgres", DATABASE],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    rate = re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)
    if done.returncode != 0 or rate is None:
        raise MeasurementError(f"pgbench failed:\n{done.stderr}")
    return float(rate[1])
