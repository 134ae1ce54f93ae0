"""`python -m benchmarks NAME`, where NAME is a benchmark or `all`: tables on stdout, progress on stderr.

Exit status: 0 measured, 1 something failed (for `laggard` and `memory`, and with --strict: or a target was missed),
2 wrong usage or a missing program.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from rich.console import Console

from benchmarks import (
    backlog,
    days,
    idle,
    laggard,
    latency,
    memory,
    metrics,
    recovery,
    relay,
    replay,
    soak,
    status,
    sweep,
    window,
    worker,
    write,
)
from benchmarks.report import Report, as_json, figures_table, sides_table
from benchmarks.rounds import say
from outbox.errors import ConfigurationError, OutboxError

BUSY = 0.25
"""Load of the machine per processor above which a warning is due."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="end with one line of JSON on stdout")
    common.add_argument("--repeat", type=positive, default=3, metavar="N", help="runs of each side (default 3)")
    common.add_argument("--quick", action="store_true", help="less load: to see that it works, not to quote")
    common.add_argument("--strict", action="store_true", help="exit with 1 when a target is missed")
    load = argparse.ArgumentParser(add_help=False)
    load.add_argument("--events", type=positive, metavar="N", help="how many wait (default 400,000)")
    load.add_argument("--names", type=positive, default=1, metavar="N", help="event names, a stream each (default 1)")
    load.add_argument("--payload", type=payload, default=100, metavar="BYTES", help="size of a payload (default 100)")
    load.add_argument("--hold-transaction", action="store_true", help="also with a transaction open throughout")
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    commands = made.add_subparsers(dest="benchmark", required=True)
    commands.add_parser("write", parents=[common], help="commits per second of 32 writers")
    commands.add_parser("relay", parents=[common, load], help="events per second of one relay")
    commands.add_parser("worker", parents=[common], help="events per second of one worker process and of two")
    commands.add_parser("window", parents=[common], help="from a plain handler's end to its outcome")
    commands.add_parser("metrics", parents=[common], help="what metrics cost a worker's processor")
    commands.add_parser("latency", parents=[common], help="from add and commit to the handler's start")
    commands.add_parser(
        "idle", parents=[common], help="an idle relay's and worker's cost, and the first event after a calm"
    )
    bounded = argparse.ArgumentParser(add_help=False)
    bounded.add_argument("--json", action="store_true", help="end with one line of JSON on stdout")
    lagging = commands.add_parser("laggard", parents=[bounded], help="a handler at 1/100 of its sibling's speed")
    lagging.add_argument("--events", type=enough, default=500_000, metavar="N", help="while it lags (default 500,000)")
    lagging.set_defaults(strict=True)
    held = commands.add_parser("memory", parents=[bounded], help="the relay's and Redis' memory, however much waits")
    held.add_argument("--quick", action="store_true", help="less load: to see that it works, not to quote")
    held.set_defaults(strict=True)
    commands.add_parser("sweep", parents=[common], help="what the sweep costs on top of the relay")
    commands.add_parser("recovery", parents=[common], help="from the loss of all streams until all is done")
    commands.add_parser("replay", parents=[common], help="100,000 dead letters beside live events")
    commands.add_parser("soak", parents=[common], help="a worker's memory over a million events, and other kinds")
    commands.add_parser("days", parents=[common], help="ten days at a million events a day, simulated")
    kept = commands.add_parser("status", parents=[common], help="what people ask, when much has been kept")
    kept.add_argument("--events", type=positive, metavar="N", help="how many are kept (default 10,000,000)")
    commands.add_parser("all", parents=[common], help="all four, and every figure against its target")
    return made


def positive(text: str) -> int:
    """A whole number above zero."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def enough(text: str) -> int:
    """So many events that a laggard's stream becomes full."""
    if (value := int(text)) < laggard.FEWEST:
        raise argparse.ArgumentTypeError(f"must be at least {laggard.FEWEST:,}")
    return value


def payload(text: str) -> int:
    """A size that the payload of the backlog can have."""
    if (value := int(text)) < backlog.SMALLEST_PAYLOAD:
        raise argparse.ArgumentTypeError(f"must be at least {backlog.SMALLEST_PAYLOAD}")
    return value


def measure(options: argparse.Namespace, benchmark: str) -> Report:
    """Run one benchmark as the options say."""
    if benchmark == "relay":
        usual = 40_000 if options.quick else 400_000
        load = relay.Load(
            getattr(options, "events", None) or usual, getattr(options, "names", 1), getattr(options, "payload", 100)
        )
        hold = getattr(options, "hold_transaction", False)
        return relay.run(repeat=options.repeat, load=load, hold_transaction=hold)
    if benchmark == "laggard":
        return laggard.run(events=options.events)
    if benchmark == "status":
        return status.run(repeat=options.repeat, quick=options.quick, events=options.events)
    if benchmark == "memory":
        return memory.run(quick=options.quick)
    run = {
        "write": write.run,
        "worker": worker.run,
        "window": window.run,
        "metrics": metrics.run,
        "latency": latency.run,
        "idle": idle.run,
        "days": days.run,
        "replay": replay.run,
        "soak": soak.run,
        "sweep": sweep.run,
        "recovery": recovery.run,
    }[benchmark]
    return run(repeat=options.repeat, quick=options.quick)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status."""
    options = parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    reports: list[Report] = []
    chosen = ("write", "relay", "worker", "latency") if options.benchmark == "all" else (options.benchmark,)
    busy = os.getloadavg()[0] / (os.cpu_count() or 1)
    if busy > BUSY:
        say(f"others keep {busy:.0%} of this machine's processors busy: absolute figures will suffer, ratios less")
    status = 0
    for benchmark in chosen:
        try:
            reports.append(measure(options, benchmark))
        except OutboxError as error:
            say(f"{benchmark}: {error}")
            status = max(status, 2 if isinstance(error, ConfigurationError) else 1)
        else:
            console.print(sides_table(reports[-1]))
    if reports:
        console.print(figures_table(reports))
    if options.json:
        print(json.dumps(as_json(reports) | {"busy_before": round(busy, 2)}))
    missed = options.strict and any(report.missed for report in reports)
    return status or int(missed)


if __name__ == "__main__":
    sys.exit(main())
