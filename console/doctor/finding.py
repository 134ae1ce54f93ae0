"""What a check is, and what it finds. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from console.listing import span

if TYPE_CHECKING:
    from console.doctor.installation import Installation


class Severity(StrEnum):
    """How bad it is. `error`: something does not work, or will not soon. `warning`: it works, worse than it should, or
    is on its way to an error. `info`: worth knowing, or not to be found out."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """Larger is worse."""
        return list(Severity).index(self)


@dataclass(frozen=True)
class Verdict:
    """What one look showed, in a sentence with the figures that say so. `remedy` takes the place of the check's own."""

    severity: Severity
    evidence: str
    remedy: str | None = None


@dataclass(frozen=True)
class Check:
    """One thing that can be wrong: its name, what is looked at, and what to do. `look` reads and judges.

    It may raise what the servers' clients raise: then the check could not be made. `asks` are the servers without which
    it is not tried.
    """

    name: str
    about: str
    remedy: str
    look: Callable[[Installation], Verdict]
    asks: tuple[str, ...] = ("postgresql",)


@dataclass(frozen=True)
class Finding:
    """What a check found. `remedy` is None where there is nothing to do; `made` is False when it could not be made."""

    check: str
    severity: Severity
    evidence: str
    remedy: str | None = None
    made: bool = True


def fine(evidence: str) -> Verdict:
    """All is well."""
    return Verdict(Severity.OK, evidence)


def info(evidence: str, remedy: str | None = None) -> Verdict:
    """Worth knowing."""
    return Verdict(Severity.INFO, evidence, remedy)


def warning(evidence: str, remedy: str | None = None) -> Verdict:
    """It works, worse than it should."""
    return Verdict(Severity.WARNING, evidence, remedy)


def error(evidence: str, remedy: str | None = None) -> Verdict:
    """It does not work, or will not soon."""
    return Verdict(Severity.ERROR, evidence, remedy)


def worst(verdicts: Iterable[Verdict], otherwise: str) -> Verdict:
    """Several verdicts of one check as one: as bad as the worst, with the evidence of all that are as bad.

    `otherwise` is the evidence when there is none.

    >>> worst([info("a"), warning("b"), warning("c")], "fine").evidence
    'b; c'
    """
    found = list(verdicts)
    if not found:
        return fine(otherwise)
    severity = max((verdict.severity for verdict in found), key=lambda each: each.rank)
    chosen = [verdict for verdict in found if verdict.severity is severity]
    return Verdict(severity, "; ".join(verdict.evidence for verdict in chosen), chosen[0].remedy)


def named(names: Iterable[str], most: int = 5) -> str:
    """Names in a sentence, a few of them.

    >>> named(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    found = list(names)
    rest = len(found) - most
    return ", ".join(found[:most]) + (f" and {rest} more" if rest > 0 else "")


def seconds(length: float) -> str:
    """A length of time for people.

    >>> seconds(90)
    '90 s'
    """
    return span(timedelta(seconds=length))
