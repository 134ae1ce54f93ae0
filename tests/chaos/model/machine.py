"""The state machine: Hypothesis makes schedules, runs each, heals, and shrinks one that breaks a promise.

A schedule reads as a story: `write`, `end`, `disturb(what='kill', name='relay-1')`, `flow(seconds=2.0)` … in the order
in which they happened.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.chaos.model.handlers import KINDS
from tests.chaos.model.simulation import DISTURBANCES, HARMS, PROCESSES, WORKERS, Simulation

slots = st.integers(0, 2)
processes = st.sampled_from(PROCESSES)
ALL = 15
numbers = st.integers(0, ALL)


class Schedule(RuleBasedStateMachine):
    """What can happen to an installation, in any order."""

    protocol = True
    simulation: Simulation

    @initialize(forgets=st.booleans(), attached=st.integers(0, 3).map(bool))
    def begin(self, forgets: bool, attached: bool) -> None:
        """`forgets`: as Redis 7 and Valkey do; else as 6.2. `attached`: the handlers are served already."""
        self.simulation = Simulation(forgets=forgets, protocol=self.protocol)
        if attached:
            self.simulation.flow(2)

    # What is usual

    @rule(slot=slots, name=st.sampled_from(["said", "said", "asked"]), key=st.sampled_from(["", "a", "b"]),
          payload=st.sampled_from(KINDS))  # fmt: skip
    def write(self, slot: int, name: str, key: str, payload: int) -> None:
        self.simulation.write(slot, name, key, payload)
        self._check()

    @rule(slot=slots, commit=st.integers(0, 5).map(bool), flush=st.booleans())
    def end(self, slot: int, commit: bool, flush: bool) -> None:
        self.simulation.end(slot, commit=commit, flush=flush)
        self._check()

    @rule(name=processes, steps=st.integers(1, 12), pick=st.integers(0, 2))
    def run(self, name: str, steps: int, pick: int) -> None:
        self.simulation.run(name, steps, pick)
        self._check()

    @rule(
        name=st.sampled_from(WORKERS),
        steps=st.one_of(st.just(0), st.integers(0, 25)),
        pick=st.integers(0, 2),
        key=st.sampled_from(["", "a"]),
        payload=st.sampled_from(KINDS),
        then=st.one_of(st.just("nothing"), st.just("groups are destroyed"), st.sampled_from(DISTURBANCES)),
    )
    def hurry(self, name: str, steps: int, pick: int, key: str, payload: int, then: str) -> None:
        """An event on its way, up to somewhere in a worker; and what happens then."""
        self.simulation.write(3, "said", key, payload)
        self.simulation.end(3, commit=True, flush=True)
        self.simulation.publish()
        self.simulation.run(name, steps, pick)
        if then in DISTURBANCES:
            self.simulation.disturb(name, then, pick)
        elif then in HARMS:
            self.simulation.harm(then, ALL)
        self._check()

    @rule(seconds=st.sampled_from([0.1, 0.6, 2.0, 5.0, 12.0]))
    def flow(self, seconds: float) -> None:
        self.simulation.flow(seconds)
        self._check()

    # What is not

    @rule(name=processes, what=st.sampled_from(DISTURBANCES), pick=st.integers(0, 2))
    def disturb(self, name: str, what: str, pick: int) -> None:
        self.simulation.disturb(name, what, pick)
        self._check()

    @rule(what=st.sampled_from(HARMS), number=numbers)
    def harm(self, what: str, number: int) -> None:
        self.simulation.harm(what, number)
        self._check()

    # The end

    def _check(self) -> None:
        self.simulation.promises.check()

    def teardown(self) -> None:
        if hasattr(self, "simulation"):
            try:
                self.simulation.heal()
            finally:
                self.simulation.close()
