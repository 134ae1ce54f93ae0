"""What the sweep has to prove: spans of the log, one for each handler, and which of them one read serves. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from outbox.position import END, Position
from relay.tick import Tick

FEW_NAMES = 2
"""Event names up to which each handler's span is read by itself."""


@dataclass(frozen=True, slots=True)
class Span:
    """The events of one name behind `done` up to `target`, at one handler."""

    handler: str
    event_name: str
    done: Position
    target: Position


@dataclass(frozen=True, slots=True)
class Bounds:
    """A span, or its beginning, by the snapshots that tell which events are in it."""

    span: Span
    lower: Tick
    """The tick of the position behind which it begins."""
    upper: Tick
    """The tick that its end is in."""
    reached: Position
    """Its end."""


def together(spans: Iterable[Span]) -> list[Span]:
    """Those of some spans that one read of the log should serve: the one that begins first, and what overlaps with it.

    A few names are read for one handler after the other: that makes the better plan.

    >>> one, two = Span("a", "x", Position(1, 0), Position(5, 0)), Span("b", "y", Position(3, 0), Position(9, 0))
    >>> three, far = Span("c", "z", Position(4, 0), Position(5, 0)), Span("d", "z", Position(20, 0), Position(30, 0))
    >>> together([far, three, two, one]) == [one, two, three]
    True
    >>> together([far, two, one]) == [one]
    True
    """
    found: list[Span] = []
    for span in sorted(spans, key=lambda span: span.done):
        if found and span.done > max(each.target for each in found):
            break
        found.append(span)
    return found if len({span.event_name for span in found}) > FEW_NAMES else found[:1]


def bound(span: Span, ticks: list[Tick]) -> Bounds | None:
    """How much of a span these ticks cover, the first of which is not behind its beginning; None when nothing.

    A tick that was thinned out is replaced by the state before the next: it holds no event of its own.
    """
    upper = max((each for each in ticks if each.id <= span.target.tick), key=lambda each: each.id, default=None)
    if upper is None or (reached := min(span.target, Position(upper.id, END))) <= span.done:
        return None
    first = next(each for each in ticks if each.id >= span.done.tick)
    lower = first if first.id == span.done.tick else Tick(span.done.tick, first.since, first.since)
    return Bounds(span, lower, upper, reached)


def parameters(bounds: list[Bounds]) -> dict[str, Any]:
    """What `fill_holes.sql` takes."""
    lowest = min(bounds, key=lambda each: each.span.done).lower.since
    highest = max(bounds, key=lambda each: each.reached).upper.snapshot
    return {
        "before_xmax": str(lowest.xmax),
        "before_xip": [str(xid) for xid in lowest.xip],
        "upto_xmax": str(highest.xmax),
        "handlers": [each.span.handler for each in bounds],
        "names": [each.span.event_name for each in bounds],
        "befores": [str(each.lower.since) for each in bounds],
        "dones": [str(each.lower.snapshot) for each in bounds],
        "done_seqs": [each.span.done.seq for each in bounds],
        "priors": [str(each.upper.since) for each in bounds],
        "uptos": [str(each.upper.snapshot) for each in bounds],
        "upto_seqs": [each.reached.seq for each in bounds],
    }
