from __future__ import annotations

import json

import pytest
from rich.console import Console

from benchmarks import report, rounds
from benchmarks.report import Figure, Report, Side, as_json, percentile, ratio

FAST = Side("fast", "events/s", (90.0, 100.0, 500.0))
SLOW = Side("slow", "events/s", (10.0, 20.0, 25.0))


def test_a_ratio_is_one_of_medians() -> None:
    assert ratio("ratio_slow", "fast / slow", FAST, SLOW).value == 5.0


@pytest.mark.parametrize(
    ("figure", "met"),
    [
        (Figure("a", "", 0.85, target=0.85), True),
        (Figure("a", "", 0.84, target=0.85), False),
        (Figure("a", "", 4.0, target=4.0, at_most=True), True),
        (Figure("a", "", 4.1, target=4.0, at_most=True), False),
        (Figure("a", "", 4.1), None),
    ],
)
def test_a_figure_is_judged_by_the_direction_of_its_target(figure: Figure, met: bool | None) -> None:
    assert figure.met is met


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.001, 1.0)])
def test_a_percentile_is_a_value_that_was_measured(share: float, expected: float) -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], share) == expected


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_json_has_every_figure_at_the_top_and_its_origin_below() -> None:
    found = json.loads(json.dumps(as_json([one_report()])))
    assert found["ratio_slow"] == 5.0
    assert found["speed"]["sides"][1] == {
        "name": "slow",
        "unit": "events/s",
        "median": 20.0,
        "runs": [10.0, 20.0, 25.0],
    }
    assert found["speed"]["missed"] == ["ratio_slow"]
    assert found["speed"]["events"] == 7


def test_tables_show_sides_figures_and_verdicts() -> None:
    console = Console(width=200)
    with console.capture() as shown:
        console.print(report.sides_table(one_report()), report.figures_table([one_report()]))
    for text in ("fast", "500.00", "ratio_slow", "≥ 6.00", "missed"):
        assert text in shown.get()


def test_sides_take_turns() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    sides = rounds.in_turns("tx/s", {"a": lambda: side("a"), "b": lambda: side("b")}, repeat=2)
    assert order == ["a", "b", "a", "b"]
    assert sides["b"].runs == (2.0, 4.0)


def one_report() -> Report:
    figure = ratio("ratio_slow", "fast / slow", FAST, SLOW, target=6)
    return Report("speed", "Speed", (FAST, SLOW), (figure,), details={"events": 7})
