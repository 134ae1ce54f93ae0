"""Faults of our own programs: killed, stopped, restarted, deployed, and ended between two exact steps."""

from __future__ import annotations

import signal
from dataclasses import replace
from functools import partial

from tests.chaos.cluster import Cluster
from tests.chaos.faults.ground import Undo, kind, start_relays
from tests.chaos.schedule import RELAYS, WORKERS, Fault

STEPS = {
    "relay": (
        "relay.ticked", "relay.read", "relay.sent", "relay.appended", "relay.bookmarked", "relay.forgotten",
        "relay.detached", "relay.taken_off", "feed.appended", "feed.moved", "feed.grouped", "feed.attached",
        "feed.restarted", "sweep.filled", "sweep.noted", "sweep.trimmed",
    ),
    "worker": (
        "worker.read", "worker.claimed", "worker.marked", "worker.committing", "worker.committed", "worker.ran",
        "worker.recorded", "worker.acknowledged", "worker.held", "worker.taken_over",
    ),
}  # fmt: skip
"""Failpoints of a relay and of a worker, between two steps each."""


@kind("kill")
def kill(cluster: Cluster, fault: Fault) -> Undo:
    """kill -9, and another one a moment later."""
    program = cluster.programs[fault.target]
    program.kill()
    return program.start


@kind("stop")
def stop(cluster: Cluster, fault: Fault) -> Undo:
    """SIGSTOP; SIGCONT later, when others may have taken over."""
    program = cluster.programs[fault.target]
    program.stand_still()
    return program.go_on


@kind("restart")
def restart(cluster: Cluster, fault: Fault) -> Undo:
    """SIGTERM, in some cases a second one, and another one when it has ended; who takes too long is killed."""
    program = cluster.programs[fault.target]
    program.go_on()
    program.tell_to_end()
    if fault.chance < 0.3:
        program.send(signal.SIGTERM)

    def start() -> None:
        program.kill()
        program.start()

    return start


def _with_failpoint(cluster: Cluster, fault: Fault, action: str) -> Undo:
    role = fault.target.partition("-")[0]
    place = STEPS[role][int(fault.chance * len(STEPS[role]))]
    turn = 1 + int(fault.chance * 997) % 9
    program = cluster.programs[fault.target]
    program.part = replace(program.part, failpoints=f"{place}={action}@{turn}")
    # Another relay must let this one lead, or it would never get there.
    for name in RELAYS if role == "relay" else (fault.target,):
        cluster.programs[name].kill()
    program.start()
    return partial(start_relays, cluster)


@kind("die between steps")
def die_between_steps(cluster: Cluster, fault: Fault) -> Undo:
    """A worker, or the relay that leads from now on, dies between two exact steps."""
    return _with_failpoint(cluster, fault, "kill")


@kind("stand between steps")
def stand_between_steps(cluster: Cluster, fault: Fault) -> Undo:
    """A worker, or the relay that leads from now on, stands still between two exact steps, while another goes on."""
    others = _with_failpoint(cluster, fault, "stop")

    def go_on() -> None:
        others()
        cluster.programs[fault.target].go_on()

    return go_on


@kind("deploy")
def deploy(cluster: Cluster, fault: Fault) -> None:
    """Workers of a second version, which handles more, take the place of the first's, one after the other."""
    for name in WORKERS:
        program = cluster.programs[name]
        if program.part.version == 1:
            program.part = replace(program.part, version=2)
            program.go_on()
            program.tell_to_end()
            if fault.chance > 0.3 or not program.await_end(1.0):
                program.kill()
            program.start()
