"""What the demo says at its end: the reconciliation, and with `--keep` where everything is."""

from __future__ import annotations

import shlex

from rich.console import Console

from console.demo.scenario import Outcome
from console.demo.stage import Stage, examples_folder

SHOWN = 10
"""Differences that are named one by one."""


def reconciliation(console: Console, outcome: Outcome, *, seed: int, seconds: float) -> None:
    """Print the verdict and, if there are any, the differences."""
    books, answers = outcome.reconciliation, outcome.answers
    _say(console, "\nReconciliation, read from the database", "bold")
    accepted, refused = len(answers.accepted), len(answers.refused)
    _line(console, "requests", f"{answers.total:,}: {accepted:,} accepted, {refused:,} declined and rolled back")
    _line(console, "committed events", f"{books.committed:,}, of which {outcome.published:,} were seen in the streams")
    _line(console, "effects", f"{books.effects:,} of {books.expected:,}, {outcome.retried:,} of them after a retry")
    for name, differences in (("lost", books.lost), ("duplicate", books.duplicate), ("ghost", books.ghost)):
        _line(console, name, f"{len(differences):,}", "red" if differences else "green")
        for difference in differences[:SHOWN]:
            _say(console, f"    {difference.event_id} {difference.handler}", "red")
    for problem in [outcome.complaint, *answers.unexpected[:SHOWN]]:
        if problem:
            _say(console, problem, "red")
    verdict = "The books agree." if outcome.good else "Something went wrong."
    _say(console, f"{verdict} {seconds:.0f} s, --seed {seed}", "bold green" if outcome.good else "bold red")


def logs(console: Console, stage: Stage) -> None:
    """Print the end of every program's log."""
    for name, end in stage.logs():
        _say(console, f"\n{name}:", "bold")
        _say(console, end)


def addresses(console: Console, stage: Stage) -> None:
    """Print where everything is, and what to try."""
    _say(console, "\nStill running; Ctrl-C ends it. In another shell:", "bold")
    for name, value in stage.environment.items():
        _say(console, f"  export {name}={shlex.quote(value)}")
    body = """{"email": "me@shop.example"}"""
    _say(console, f"  curl {stage.url}/signup -H 'content-type: application/json' -d '{body}'")
    _say(console, "  outbox status")
    _say(console, "  outbox dead")
    _say(console, f"  cd {shlex.quote(str(examples_folder()))} && outbox worker shop.tasks:app")
    _say(console, f"API {stage.url}/docs, logs in {stage.folder / 'logs'}")


def _line(console: Console, label: str, text: str, style: str | None = None) -> None:
    _say(console, f"  {label:<18}{text}", style)


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, soft_wrap=True, markup=False, highlight=False)
