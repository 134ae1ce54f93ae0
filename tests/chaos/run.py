"""One run: safety under faults, then everything is healed and must come to rest within a bound; then the checker."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from console.servers import ServerError
from tests.chaos import checker, story
from tests.chaos.cluster import Cluster
from tests.chaos.evidence import gather, places, unsettled
from tests.chaos.faults import NotPossible, cause
from tests.chaos.history import History, read
from tests.chaos.schedule import WRITERS, Fault, Schedule
from tests.chaos.template import Template
from tests.chaos.watcher import Watcher

BOUND = 60.0
"""Seconds in which all must come to rest when everything is healed."""

LONGEST = 180.0
"""Seconds that it may take while something moves every quarter of the bound: a busy machine is slow, not stuck."""

HEALTHY = 0.7
"""Seconds for which writers go on after that."""

STEP = 0.02
"""Seconds between two looks at what is due."""


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    seed: int
    length: float
    """Seconds under faults."""
    mutant: str = ""
    events: int = 0
    deliveries: int = 0
    seen: int = 0
    """Entries that were seen on the streams."""
    faults: dict[str, int] = field(default_factory=dict)
    """How often each kind of fault was caused."""
    skipped: dict[str, int] = field(default_factory=dict)
    """How often one was not possible."""
    recovery: float = 0.0
    """Seconds from the end of the faults until all had come to rest."""
    seconds: float = 0.0
    findings: tuple[str, ...] = ()
    """At most twenty of them."""
    kinds: dict[str, int] = field(default_factory=dict)
    """How many findings of each kind there are."""
    story: str = ""
    schedule: dict[str, Any] = field(default_factory=dict)
    """The schedule, of a run that failed."""

    @property
    def ok(self) -> bool:
        """Whether all promises were kept."""
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Result:
        """The result of `to_json`."""
        return cls(**{**facts, "findings": tuple(facts["findings"])})


def play(
    schedule: Schedule,
    folder: Path,
    template: Template,
    *,
    mutant: str = "",
    bound: float = BOUND,
    longest: float = LONGEST,
) -> Result:
    """Play a schedule in a folder of its own, in which histories and logs stay.

    `bound` and `longest`: see `BOUND` and `LONGEST`.
    """
    began = time.monotonic()
    faults: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    with Cluster(folder, template, schedule, mutant=mutant) as cluster:
        harness = History(cluster.histories / "harness.jsonl")
        watcher = Watcher(cluster)
        _under_faults(cluster, schedule, harness, faults, skipped)
        cluster.mend()
        harness.say("healed")
        healed = time.monotonic()
        _let_write_on(cluster, HEALTHY)
        _end_writers(cluster)
        left = _await_rest(cluster, harness, bound, longest)
        recovery = time.monotonic() - healed
        harness.say("over" if left else "at rest")
        if schedule.lame and not left:
            # Whoever was replaced comes back, and can change nothing.
            for name in schedule.lame:
                cluster.programs[name].go_on()
            _let_write_on(cluster, HEALTHY)
            left = _await_rest(cluster, harness, bound, longest)
        cluster.end_programs()
        seen = watcher.close()
        entries = read(cluster.histories)
        facts = gather(cluster, entries, seen, left)
        findings = checker.check(facts)
        told = story.tell(schedule, findings, facts, entries, places(cluster, findings)) if findings else ""
    return Result(
        seed=schedule.seed,
        length=schedule.length,
        mutant=mutant,
        events=len(facts.events),
        deliveries=len(facts.deliveries),
        seen=len(facts.sightings),
        faults=dict(faults),
        skipped=dict(skipped),
        recovery=round(recovery, 2),
        seconds=round(time.monotonic() - began, 1),
        findings=tuple(str(finding) for finding in findings[:20]),
        kinds=dict(Counter(finding.kind for finding in findings)),
        story=told,
        schedule=schedule.to_json() if findings else {},
    )


def _under_faults(
    cluster: Cluster, schedule: Schedule, harness: History, faults: Counter[str], skipped: Counter[str]
) -> None:
    began = time.monotonic()
    coming = list(schedule.faults)
    ending: list[tuple[float, Fault, Callable[[], None]]] = []
    while (now := time.monotonic() - began) < schedule.length:
        for end in [each for each in ending if each[0] <= now]:
            ending.remove(end)
            _end(end[1], end[2], harness)
        while coming and coming[0].at <= now:
            fault = coming.pop(0)
            try:
                undo = cause(cluster, fault)
            except NotPossible as error:
                harness.say("skipped", kind=fault.kind, target=fault.target, why=str(error))
                skipped[fault.kind] += 1
                continue
            harness.say("fault", kind=fault.kind, target=fault.target, lasts=fault.lasts)
            faults[fault.kind] += 1
            if undo is not None:
                ending.append((time.monotonic() - began + fault.lasts, fault, undo))
        cluster.tend()
        time.sleep(STEP)
    for _, fault, undo in ending:
        _end(fault, undo, harness)


def _end(fault: Fault, undo: Callable[[], None], harness: History) -> None:
    harness.say("over", kind=fault.kind, target=fault.target)
    try:
        undo()
    except ServerError as error:
        # Another fault, a full disk say, is in its way. When all is healed it must start.
        harness.say("not over", kind=fault.kind, why=str(error)[-200:])


def _let_write_on(cluster: Cluster, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        cluster.tend()
        time.sleep(STEP)


def _end_writers(cluster: Cluster) -> None:
    writers = [cluster.programs[name] for name in WRITERS]
    for writer in writers:
        writer.tell_to_end()
    for writer in writers:
        if not writer.await_end(10.0):
            cluster.fallen.append(f"{writer.part.name} did not end: a transaction does not come back")
            writer.kill()


def _await_rest(cluster: Cluster, harness: History, bound: float, longest: float) -> list[str]:
    """Wait until nothing is left to do; what is left when the bound is over and nothing moves any more."""
    began = moved = time.monotonic()
    before: list[str] = []
    while left := unsettled(cluster):
        now = time.monotonic()
        if left != before:
            before, moved = left, now
            harness.say("left", undone=left)
        if now - began > (longest if now - moved < bound / 4 else bound):
            return left
        cluster.tend()
        time.sleep(0.15)
    return []
