"""The state machine: Hypothesis makes schedules of what happens, runs each, heals, and shrinks one that breaks a promise.

A schedule reads as a story: `write`, `end`, `kill('relay-1', sent=True)`, `flow(seconds=3)` … in the order in which they
happened.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.chaos.model.handlers import KINDS
from tests.chaos.model.simulation import HARMS, PROCESSES, WORKERS, Simulation
from tests.chaos.model.world import Fate

slots = st.integers(0, 2)
processes = st.sampled_from(PROCESSES)
numbers = st.integers(0, 15)
fates = st.sampled_from([Fate.LOST, Fate.UNANSWERED])


class Schedule(RuleBasedStateMachine):
    """What can happen to an installation, in any order."""

    protocol = True
    simulation: Simulation

    @initialize(forgets=st.booleans(), attached=st.booleans())
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

    @rule(name=st.sampled_from(WORKERS), steps=st.integers(0, 25), pick=st.integers(0, 2), key=st.sampled_from(["", "a"]),
          payload=st.sampled_from(KINDS))  # fmt: skip
    def hurry(self, name: str, steps: int, pick: int, key: str, payload: int) -> None:
        """An event on its way, up to somewhere in a worker."""
        self.simulation.write(3, "said", key, payload)
        self.simulation.end(3, commit=True, flush=True)
        self.simulation.publish()
        self.simulation.run(name, steps, pick)
        self._check()

    @rule(seconds=st.sampled_from([0.1, 0.6, 2.0, 5.0, 12.0]))
    def flow(self, seconds: float) -> None:
        self.simulation.flow(seconds)
        self._check()

    # Processes

    @rule(name=processes, sent=st.booleans())
    def kill(self, name: str, sent: bool) -> None:
        self.simulation.kill(name, sent=sent)
        self._check()

    @rule(name=st.sampled_from(WORKERS))
    def stop(self, name: str) -> None:
        self.simulation.stop(name)
        self._check()

    @rule(name=processes)
    def pause(self, name: str) -> None:
        self.simulation.pause(name)

    @rule(name=processes)
    def resume(self, name: str) -> None:
        self.simulation.resume(name)

    @rule(name=processes, fate=fates, pick=st.integers(0, 2))
    def fail(self, name: str, fate: Fate, pick: int) -> None:
        self.simulation.fail(name, fate, pick)
        self._check()

    # Servers

    @rule(server=st.sampled_from(["postgres", "redis"]))
    def away(self, server: str) -> None:
        self.simulation.away(server)

    @precondition(lambda self: self.simulation.world.away)
    @rule()
    def back(self) -> None:
        self.simulation.back()

    @rule(number=numbers)
    def end_session(self, number: int) -> None:
        self.simulation.end_session(number)

    @rule()
    def crash_postgres(self) -> None:
        self.simulation.crash_postgres()
        self._check()

    @rule(what=st.sampled_from(HARMS), number=numbers)
    def harm_redis(self, what: str, number: int) -> None:
        self.simulation.harm_redis(what, number)

    # The end

    def _check(self) -> None:
        self.simulation.promises.check()

    def teardown(self) -> None:
        if hasattr(self, "simulation"):
            try:
                self.simulation.heal()
            finally:
                self.simulation.close()
