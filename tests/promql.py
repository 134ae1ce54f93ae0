"""Prometheus' expressions on samples that were exported: what they name, and what alerts would say.

The parser is Prometheus' own grammar. Evaluated is what the alerts use, at one moment and from two scrapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import promql_parser as promql


class Sample(NamedTuple):
    """One line of `/metrics`."""

    name: str
    labels: dict[str, str]
    value: float


Labels: TypeAlias = frozenset[tuple[str, str]]
Vector: TypeAlias = dict[Labels, float]
Node: TypeAlias = Any

COMPARED: dict[str, Callable[[float, float], bool]] = {"<": float.__lt__, ">": float.__gt__}
FOLDED: dict[str, Callable[[list[float]], float]] = {"sum": sum, "max": max, "min": min}


def parse(expression: str) -> Node:
    """An expression as a tree. Raises `ValueError` for what Prometheus would refuse."""
    # A variable of Grafana's.
    return promql.parse(expression.replace("$__rate_interval", "5m"))


def nodes(tree: Node) -> Iterator[Node]:
    """A tree's nodes, itself first."""
    yield tree
    for part in ("lhs", "rhs", "expr", "vector_selector"):
        if hasattr(tree, part):
            yield from nodes(getattr(tree, part))
    for argument in getattr(tree, "args", ()):
        yield from nodes(argument)


def selectors(tree: Node) -> list[Node]:
    """What it reads: each with a `name` and `matchers`."""
    return [node for node in nodes(tree) if isinstance(node, promql.VectorSelector)]


def evaluate(tree: Node, now: Iterable[Sample], before: Iterable[Sample] = ()) -> Vector | float:
    """Its value; `before` is the scrape at the beginning of every range."""

    def value(node: Node) -> Any:
        match node:
            case promql.NumberLiteral():
                return node.val
            case promql.ParenExpr():
                return value(node.expr)
            case promql.VectorSelector():
                return _selected(node, now)
            case promql.Call():
                return _called(node)
            case promql.AggregateExpr():
                return _aggregated(node, value(node.expr))
            case promql.BinaryExpr():
                return _joined(str(node.op), value(node.lhs), value(node.rhs))
        raise NotImplementedError(node)

    def _called(node: Node) -> Vector:
        [argument] = node.args
        if node.func.name == "absent":
            return {} if value(argument) else {frozenset(): 1.0}
        assert node.func.name in ("rate", "increase"), node.func.name
        # A counter that was not there at the beginning has not risen.
        first, last = (_selected(argument.vector_selector, samples) for samples in (before, now))
        span = argument.range.total_seconds() if node.func.name == "rate" else 1.0
        return {labels: (last[labels] - first[labels]) / span for labels in first.keys() & last.keys()}

    return value(tree)  # type: ignore[no-any-return]


def _selected(node: Node, samples: Iterable[Sample]) -> Vector:
    return {
        frozenset(sample.labels.items()): sample.value
        for sample in samples
        if sample.name == node.name and all(_matches(matcher, sample) for matcher in node.matchers.matchers)
    }


def _matches(matcher: Node, sample: Sample) -> bool:
    assert matcher.op in (promql.MatchOp.Equal, promql.MatchOp.Re), matcher
    return sample.labels.get(matcher.name, "") in values(matcher)


def values(matcher: Node) -> list[str]:
    """The values of a label that a matcher names."""
    return str(matcher.value).split("|")


def _aggregated(node: Node, vector: Vector) -> Vector:
    kept = [] if node.modifier is None else node.modifier.labels
    groups: dict[Labels, list[float]] = {}
    for labels, number in vector.items():
        groups.setdefault(frozenset((name, value) for name, value in labels if name in kept), []).append(number)
    return {labels: FOLDED[str(node.op)](numbers) for labels, numbers in groups.items()}


def _joined(operator: str, left: Vector, right: Vector | float) -> Vector:
    if isinstance(right, float):
        right = dict.fromkeys(left, right)
    both = left.keys() & right.keys()
    match operator:
        case "and":
            return {labels: left[labels] for labels in both}
        case "or":
            return right | left
        case "/":
            return {labels: left[labels] / right[labels] for labels in both if right[labels]}
    return {labels: left[labels] for labels in both if COMPARED[operator](left[labels], right[labels])}
