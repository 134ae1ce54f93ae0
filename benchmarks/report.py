"""What a benchmark found, as values; and how they look as tables and as JSON. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Side:
    """One of the things compared: the same measurement, repeated.

    >>> Side("plain", "tx/s", (900.0, 1100.0, 1000.0)).median
    1000.0
    """

    name: str
    unit: str
    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the runs."""
        return median(self.runs)


@dataclass(frozen=True)
class Figure:
    """A result with a name that programs can rely on, and what it should be; `at_most` when less is better.

    >>> Figure("p50_ms", "median", 3.1, target=4.0, at_most=True).met
    True
    """

    key: str
    label: str
    value: float
    target: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without a target."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass(frozen=True)
class Report:
    """The outcome of one benchmark. `details` are further facts for the JSON."""

    name: str
    title: str
    sides: tuple[Side, ...]
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def missed(self) -> tuple[Figure, ...]:
        """The figures below their target."""
        return tuple(figure for figure in self.figures if figure.met is False)


def ratio(key: str, label: str, one: Side, other: Side, target: float | None = None) -> Figure:
    """How many times the median of `one` is that of `other`."""
    return Figure(key, label, one.median / other.median, target)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: the smallest value that at least `share` of all values do not exceed.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5)
    2.0
    """
    if not values:
        raise ValueError("no values")
    rank = -int(-share * len(values) // 1)
    return sorted(values)[min(max(rank, 1), len(values)) - 1]


def as_json(reports: Iterable[Report]) -> dict[str, Any]:
    """Every figure by its key; and by each benchmark's name, what it was computed from."""
    found: dict[str, Any] = {}
    for report in reports:
        found |= {figure.key: round(figure.value, 3) for figure in report.figures}
        found[report.name] = {
            "sides": [_side(side) for side in report.sides],
            "missed": [figure.key for figure in report.missed],
            **report.details,
        }
    return found


def _side(side: Side) -> dict[str, Any]:
    runs = [round(value, 3) for value in side.runs]
    return {"name": side.name, "unit": side.unit, "median": round(side.median, 3), "runs": runs}


def number(value: float) -> str:
    """A figure for reading: thousands without decimals, small ones with two.

    >>> number(123456.7), number(0.8512)
    ('123,457', '0.85')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}"


def sides_table(report: Report) -> Table:
    """What was measured, one row for each side."""
    table = Table("side", "unit", title=report.title, title_justify="left", caption_justify="left")
    for heading in ("median", "lowest", "highest", "runs"):
        table.add_column(heading, justify="right")
    for side in report.sides:
        table.add_row(
            side.name,
            side.unit,
            number(side.median),
            number(min(side.runs)),
            number(max(side.runs)),
            str(len(side.runs)),
        )
    table.caption = "\n".join(report.notes) or None
    return table


def figures_table(reports: Iterable[Report]) -> Table:
    """Every figure against its target."""
    table = Table("benchmark", "figure", title="Measured against target", title_justify="left")
    table.add_column("key", no_wrap=True)
    for heading in ("measured", "target", "verdict"):
        table.add_column(heading, justify="right")
    verdicts = {True: "[green]met[/]", False: "[red]missed[/]", None: "–"}
    for report in reports:
        for figure in report.figures:
            target = "–" if figure.target is None else f"{'≤' if figure.at_most else '≥'} {number(figure.target)}"
            table.add_row(report.name, figure.label, figure.key, number(figure.value), target, verdicts[figure.met])
    return table
