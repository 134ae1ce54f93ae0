"""Asking before something is changed: on a terminal a question, elsewhere `--yes` or nothing happens."""

from __future__ import annotations

import sys

import typer


def confirm(question: str, *, yes: bool) -> None:
    """Return if the person agrees, or said `--yes`. Raises `typer.Abort` if not, and a usage error where nobody can be
    asked.

    >>> confirm("Pause handler send_email?", yes=True)
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise typer.BadParameter("this changes something and there is no terminal to ask on: add --yes")
    typer.confirm(question, abort=True, err=True)
