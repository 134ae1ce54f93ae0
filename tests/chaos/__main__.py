"""`python -m tests.chaos`: plays seeds, or the mutants, shows how far it is, and sums up what came of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from tests.chaos import mutants
from tests.chaos.play import KEPT, Task, control, hunt, play_all
from tests.chaos.run import Result
from tests.chaos.schedule import Schedule, draw
from tests.chaos.summary import Summary, summarize

REGRESSIONS = Path(__file__).with_name("regressions.json")
"""Schedules that once found something: played before all seeds."""

CATCH_WITHIN = 8
"""Seeds within which each mutant must be caught."""

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)
say = Console(stderr=True, highlight=False)


@app.command()
def main(
    seeds: Annotated[int, typer.Option(min=0, help="How many seeds.")] = 20,
    first: Annotated[int, typer.Option(min=0, help="The first of them.")] = 1,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs at a time; each takes about a processor.")] = 2,
    length: Annotated[float, typer.Option(min=1.0, help="Seconds under faults.")] = 12.0,
    play_mutants: Annotated[bool, typer.Option("--mutants", help="Play the mutants, too.")] = False,
    regressions: Annotated[bool, typer.Option(help="Play the schedules first that once found something.")] = True,
    keep: Annotated[bool, typer.Option(help="Add schedules that find something to those.")] = False,
    results: Annotated[
        Path | None, typer.Option(help="Note results there, a JSON object a line; what is noted is not played again.")
    ] = None,
    output_json: Annotated[bool, typer.Option("--json", help="The summary as one JSON object.")] = False,
) -> None:
    """Try to break every promise: each seed is a schedule of faults for real writers, relays, workers and servers.

    \b
    python -m tests.chaos --seeds 500 --jobs 2 --results chaos.jsonl
    python -m tests.chaos --seeds 1 --first 417          the seed 417 again

    Exit status 1 if anything was found, or a mutant was not caught.
    """
    known = _noted(results)
    tasks = [Task((schedule,)) for schedule in _kept()] if regressions else []
    tasks += [Task((draw(seed, length),)) for seed in range(first, first + seeds)]
    tasks = [task for task in tasks if (task.schedules[0].seed, task.schedules[0].length) not in known]
    if play_mutants:
        # First: each may take several runs.
        shorter = min(length, 3.0)
        tasks = [
            *(hunt(name, first, CATCH_WITHIN, shorter) for name in mutants.MUTANTS),
            *(control(name, first, shorter) for name in ("cursor by seq", "group at the end", "star ids")),
            *tasks,
        ]
    found = list(known.values())
    escaped: list[str] = []
    caught: dict[str, int] = {}
    for task, result in _shown(play_all(tasks, jobs), len(tasks)):
        if task.mutant in mutants.MUTANTS:
            if result.ok:
                escaped.append(task.mutant)
            else:
                caught[task.mutant] = 1 + result.seed - first
            continue
        found.append(result)
        if task.mutant:
            continue
        if results is not None:
            with results.open("a") as file:
                file.write(json.dumps(result.to_json()) + "\n")
        if not result.ok and keep:
            _keep(result)
    summary = summarize(found)
    if output_json:
        print(json.dumps(summary.to_json() | {"mutants_caught_with": caught, "mutants_not_caught": escaped}))  # noqa: T201
    else:
        _print(summary, caught, escaped)
    raise typer.Exit(1 if summary.failed or escaped else 0)


def _noted(results: Path | None) -> dict[tuple[int, float], Result]:
    if results is None or not results.exists():
        return {}
    noted = {}
    for line in results.read_text().splitlines():
        result = Result.from_json(json.loads(line))
        noted[result.seed, result.length] = result
    return noted


def _kept() -> list[Schedule]:
    return [Schedule.from_json(facts["schedule"]) for facts in json.loads(REGRESSIONS.read_text())]


def _keep(result: Result) -> None:
    kept = json.loads(REGRESSIONS.read_text())
    kept.append({"found": result.findings[0], "schedule": result.schedule})
    REGRESSIONS.write_text(json.dumps(kept, indent=1) + "\n")


@contextmanager
def _progress(total: int) -> Iterator[tuple[Progress, TaskID]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=say) as progress:
        yield progress, progress.add_task("chaos", total=total)


def _shown(results: Iterable[tuple[Task, Result]], total: int) -> Iterator[tuple[Task, Result]]:
    """Pass results on, and show them on stderr."""
    events = failed = 0
    with _progress(total) as (progress, bar):
        for task, result in results:
            events += result.events
            if task.mutant in mutants.MUTANTS:
                what = "not caught" if result.ok else f"caught by seed {result.seed}: {result.findings[0][:100]}"
                progress.print(f"mutant {task.mutant!r}: {what}", markup=False)
            elif not result.ok:
                failed += 1
                progress.print(result.story, f"  histories and logs: {KEPT / task.name}", sep="\n", markup=False)
            description = f"{events:,} events, {failed} failed"
            progress.update(bar, advance=1, description=description)
            if not say.is_terminal:
                say.print(f"{task.name}: {'ok' if result.ok else 'FOUND'}, {result.seconds:g} s", markup=False)
            yield task, result


def _print(summary: Summary, caught: dict[str, int], escaped: list[str]) -> None:
    facts = summary.to_json()
    table = Table("chaos", "", show_header=False)
    for name in (
        "runs", "events", "deliveries", "entries_seen", "lost", "duplicates", "over_bound", "median_recovery",
        "longest_recovery",
    ):  # fmt: skip
        table.add_row(name.replace("_", " "), f"{facts[name]:,}" + (" s" if "recovery" in name else ""))
    for name in ("faults", "skipped", "findings"):
        if facts[name]:
            table.add_row(name, ", ".join(f"{kind} {times}" for kind, times in facts[name].items()))
    if facts["failed"]:
        table.add_row("failed seeds", ", ".join(map(str, facts["failed"])))
    if caught or escaped:
        table.add_row("mutants caught", ", ".join(f"{name} (run {run})" for name, run in caught.items()))
        table.add_row("mutants not caught", ", ".join(escaped) or "none")
    Console().print(table)


if __name__ == "__main__":
    app()
