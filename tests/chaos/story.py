"""The smallest story of a finding: the seed, the faults near the event, and the event's path. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.chaos.checker import Finding
from tests.chaos.facts import Facts
from tests.chaos.history import Entry
from tests.chaos.schedule import Schedule

NEAR = 3.0
"""Seconds before and after an event's path within which a fault is near."""


def tell(
    schedule: Schedule, findings: list[Finding], facts: Facts, entries: list[Entry], found: Iterable[str] = ()
) -> str:
    """The story of the first finding. `found` are lines about what the servers hold, for its end."""
    began = entries[0]["t"] if entries else 0.0
    first = findings[0]
    config = {
        name: value for name, value in schedule.to_json().items() if name not in ("faults", "seed", "length") and value
    }
    lines = [
        f"seed {schedule.seed}, {schedule.length:g} s: {len(findings)} findings, of which the first: {first}",
        f"with {config}",
    ]
    path = [entry for entry in entries if first.event and first.event in str(entry)]
    if first.event in facts.said:
        tx = facts.said[first.event][1].tx
        path += [entry for entry in entries if entry.get("tx") == tx and entry not in path]
    low = min((entry["t"] for entry in path), default=began) - NEAR
    high = max((entry["t"] for entry in path), default=float("inf")) + NEAR
    shown = [entry for entry in entries if entry in path or (entry["who"] == "harness" and low <= entry["t"] <= high)]
    lines += [_line(entry, began) for entry in shown[:200]]
    lines += [
        f"  on {each.stream!r} at {each.tick}-{each.seq}" for each in facts.sightings if each.event == first.event
    ]
    return "\n".join([*lines, *found])


def _line(entry: Entry, began: float) -> str:
    facts = {name: value for name, value in entry.items() if name not in ("t", "who", "pid", "what")}
    return f"  {entry['t'] - began:7.3f}  {entry['who']}:{entry['pid']} {entry['what']} " + ", ".join(
        f"{name}={short(value)}" for name, value in facts.items() if value not in ("", None)
    )


def short(value: Any) -> str:
    """A value as text that fits into a line."""
    text = str(value)
    return text if len(text) < 400 else text[:400] + "…"
