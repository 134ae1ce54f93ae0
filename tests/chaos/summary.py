"""The summary of many runs. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.run import BOUND, Result


@dataclass
class Summary:
    """What came of many runs, in sums."""

    runs: int = 0
    failed: list[int] = field(default_factory=list)
    events: int = 0
    deliveries: int = 0
    seen: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    over_bound: int = 0
    """Runs that needed longer than the bound to come to rest, though something moved all the while."""
    longest_recovery: float = 0.0
    recoveries: list[float] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Count one run."""
        self.runs += 1
        if not result.ok:
            self.failed.append(result.seed)
        self.events += result.events
        self.deliveries += result.deliveries
        self.seen += result.seen
        self.faults.update(result.faults)
        self.skipped.update(result.skipped)
        self.findings.update(result.kinds)
        self.over_bound += result.recovery > BOUND
        self.longest_recovery = max(self.longest_recovery, result.recovery)
        self.recoveries.append(result.recovery)

    def to_json(self) -> dict[str, Any]:
        """As JSON: seeds that failed, sums, and seconds of recovery."""
        ordered = sorted(self.recoveries)
        return {
            "runs": self.runs,
            "failed": self.failed,
            "events": self.events,
            "deliveries": self.deliveries,
            "entries_seen": self.seen,
            "faults": dict(self.faults.most_common()),
            "skipped": dict(self.skipped.most_common()),
            "lost": self.findings["lost"],
            "duplicates": self.findings["duplicate"],
            "findings": dict(self.findings),
            "over_bound": self.over_bound,
            "median_recovery": ordered[len(ordered) // 2] if ordered else 0.0,
            "longest_recovery": self.longest_recovery,
        }


def summarize(results: Iterable[Result]) -> Summary:
    """The summary of these runs."""
    summary = Summary()
    for result in results:
        summary.add(result)
    return summary
