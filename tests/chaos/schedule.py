"""Schedules: a seed becomes a configuration and a list of timed faults. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from random import Random
from typing import Any

from tests.chaos.knobs import KNOBS

RELAYS = ("relay-1", "relay-2")
WORKERS = ("worker-1", "worker-2", "worker-3")
WRITERS = ("writer-1", "writer-2")
PROGRAMS = RELAYS + WORKERS + WRITERS

CALM = 0.25
"""Share of the periods without a fault."""

SELDOM = 0.15
"""Share of the schedules with what takes much processor time."""


@dataclass(frozen=True)
class Kind:
    """One kind of fault: whom it may hit, for how many seconds at least and at most, and what it takes."""

    targets: tuple[str, ...] = ("",)
    lasts: tuple[float, float] = (0.0, 0.0)
    needs: str = ""
    """`aof`: a Redis that keeps a file; `replica`: a second Redis."""
    weight: int = 2


POSTGRES_LINKS = tuple(f"{program}/postgres" for program in PROGRAMS)
LINKS = POSTGRES_LINKS + tuple(f"{program}/redis" for program in RELAYS + WORKERS)

KINDS: dict[str, Kind] = {
    "kill": Kind(PROGRAMS, (0.0, 1.0), weight=6),
    "stop": Kind(PROGRAMS, (0.1, 4.0), weight=5),
    "restart": Kind(RELAYS + WORKERS, (0.0, 3.0), weight=2),
    "die between steps": Kind(RELAYS + WORKERS, (0.2, 1.5), weight=5),
    "stand between steps": Kind(RELAYS + WORKERS, (0.5, 4.0), weight=3),
    "terminate backends": Kind(),
    "postgres restart": Kind(lasts=(0.0, 1.5), weight=3),
    "postgres freeze": Kind(lasts=(0.2, 3.0)),
    "postgres disk full": Kind(lasts=(0.3, 2.0)),
    "redis restart": Kind(lasts=(0.0, 2.0), weight=3),
    "redis empty": Kind(lasts=(0.0, 1.0)),
    "redis tail lost": Kind(lasts=(0.0, 0.5), needs="aof", weight=3),
    "redis freeze": Kind(lasts=(0.2, 6.0)),
    "redis memory": Kind(lasts=(0.5, 3.0)),
    "redis evicts": Kind(lasts=(0.5, 3.0)),
    "redis disk full": Kind(lasts=(0.3, 2.0), needs="aof"),
    "failover": Kind(lasts=(0.1, 1.5), needs="replica", weight=6),
    "flushall": Kind(),
    "script flush": Kind(weight=1),
    "client kill": Kind(),
    "delete stream": Kind(),
    "destroy group": Kind(),
    "trim stream": Kind(),
    "delete consumer": Kind(),
    "clock ahead": Kind(weight=1),
    "deploy": Kind(),
    "link drop": Kind(LINKS, (0.0, 0.0)),
    "link delay": Kind(LINKS, (0.5, 4.0)),
    "link hold": Kind(LINKS, (0.2, 6.0), weight=3),
    "link mute": Kind(LINKS, (0.1, 5.0), weight=3),
    "link deafen": Kind(LINKS, (0.1, 5.0)),
}
"""Every kind of fault by its name; what it does is in `faults`."""


@dataclass(frozen=True)
class Fault:
    """Something that happens at second `at`, and for those that last, ends `lasts` seconds later. `chance`, in [0, 1),
    decides what the fault leaves open."""

    at: float
    kind: str
    target: str = ""
    lasts: float = 0.0
    chance: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """One run: its configuration and its faults."""

    seed: int
    length: float
    """Seconds under faults."""
    persistence: str = "none"
    """What Redis keeps: `none`, `everysec` or `always`."""
    replica: bool = False
    lease: float = 1.5
    concurrency: int = 20
    rate: float = 40.0
    """Transactions a second, of all writers."""
    slowness: float = 1.0
    """What handlers' times are multiplied by."""
    knobs: dict[str, int] = field(default_factory=dict)
    children: bool = False
    """Whether there is a handler in child processes."""
    supervised: tuple[str, ...] = ()
    """Workers that are two processes under a supervisor."""
    lame: tuple[str, ...] = ()
    """Processes that stand still while all else is healed and must drain without them."""
    faults: tuple[Fault, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON, to be played again when seeds mean something else."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Schedule:
        """The schedule of `to_json`."""
        faults = tuple(Fault(**fault) for fault in facts["faults"])
        return cls(
            **{
                **facts,
                "faults": faults,
                "lame": tuple(facts["lame"]),
                "supervised": tuple(facts.get("supervised", ())),
            }
        )

    @property
    def links(self) -> frozenset[str]:
        """The ways, as `program/server`, on which something stands that can disturb them."""
        used = {fault.target for fault in self.faults if fault.kind.startswith("link")}
        if self.replica:
            used |= {f"{program}/redis" for program in RELAYS + WORKERS}
        return frozenset(used)

    def has(self, kind: str) -> bool:
        """Whether this kind of fault is among the faults."""
        return any(fault.kind == kind for fault in self.faults)


def draw(seed: int, length: float, mix: Sequence[str] = ()) -> Schedule:
    """The schedule of a seed: `length` seconds in periods of about one, a quarter of them without a fault.

    Each seed draws from a few kinds only, so that many combinations are tried hard instead of all a little; `mix` names
    the kinds instead; then there is much to do, and no calm. The same arguments give the same schedule.
    """
    chance = Random(f"{seed}/{length}/{','.join(mix)}")
    persistence = chance.choice(("none", "everysec", "always"))
    replica = chance.random() < 0.25
    able = [name for name in (mix or KINDS) if _applies(KINDS[name], persistence, replica)]
    kinds = able if mix else _some(chance, able)
    faults: list[Fault] = []
    at = 0.3
    while at < length:
        period = chance.uniform(0.5, 1.5)
        if chance.random() >= (0.0 if mix else CALM):
            times = chance.choice((4, 5) if mix else (1, 1, 2))
            faults += [_fault(chance, kinds, at, min(period, length - at)) for _ in range(times)]
        at += period
    knobs = {name: chance.randrange(len(KNOBS[name][2])) for name in KNOBS if chance.random() < 0.3}
    lame: list[str] = []
    if chance.random() < 0.25 and not mix:
        lame = [chance.choice(side) for side in (RELAYS, WORKERS) if chance.random() < 0.7]
    drawn = Schedule(
        seed,
        length,
        persistence=persistence,
        replica=replica,
        lease=1.0 if mix else chance.choice((1.0, 1.5, 3.0)),
        concurrency=40 if mix else chance.choice((20, 40, 80)),
        rate=80.0 if mix else chance.choice((10.0, 20.0, 40.0)),
        slowness=10.0 if mix else chance.choice((1.0, 1.0, 3.0)),
        knobs=knobs if chance.random() < 0.6 and not mix else {},
        lame=tuple(lame),
        faults=tuple(sorted(faults, key=lambda fault: fault.at)),
    )
    # Both start programs anew, at a second of processor time each.
    children, supervised = chance.random() < SELDOM and not mix, chance.random() < SELDOM and not mix
    return replace(drawn, children=children, supervised=() if lame or not supervised else WORKERS[:1])


def _applies(kind: Kind, persistence: str, replica: bool) -> bool:
    return {"": True, "aof": persistence != "none", "replica": replica}[kind.needs]


def _some(chance: Random, names: list[str]) -> list[str]:
    chosen: list[str] = []
    for _ in range(chance.randint(3, 7)):
        left = [name for name in names if name not in chosen]
        chosen += chance.choices(left, [KINDS[name].weight for name in left])
    return chosen


def _fault(chance: Random, kinds: list[str], at: float, within: float) -> Fault:
    name = chance.choices(kinds, [KINDS[name].weight for name in kinds])[0]
    kind = KINDS[name]
    low, high = kind.lasts
    # Most are short: there are more of them, and they cross more.
    lasts = low + (high - low) * chance.random() ** 2
    return Fault(
        round(at + chance.random() * within, 3), name, chance.choice(kind.targets), round(lasts, 3), chance.random()
    )
