"""No schedule breaks a promise, and the machine that says so finds each broken variant."""

from __future__ import annotations

import os
import secrets

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.chaos.model.machine import Schedule
from tests.chaos.model.mutants import MUTANTS
from tests.chaos.model.promises import BrokenPromise
from tests.chaos.model.simulation import simulated

EXAMPLES = int(os.environ.get("OUTBOX_MODEL_SCHEDULES", "0"))
"""How many schedules to try, at random; by default a few, always the same."""

CHOSEN = os.environ.get("OUTBOX_MODEL_SEED")
"""The seed of a failure that is to be repeated."""

PARTS = 2 if EXAMPLES else 1
"""So many processes may share them."""

FEW, BOUND, SEED = 60, 1000, 1

SETTINGS = settings(
    max_examples=EXAMPLES // PARTS or FEW,
    stateful_step_count=30,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)


@pytest.mark.timeout(0 if EXAMPLES else 240)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_schedule_breaks_a_promise(part: int) -> None:
    if not EXAMPLES:
        with simulated():
            run_state_machine_as_test(Schedule, settings=SETTINGS)
        return
    chosen = int(CHOSEN) if CHOSEN else secrets.randbits(32)
    # pytest shows it when the test fails, beside the shortest story that breaks a promise.
    print(f"to repeat: OUTBOX_MODEL_SEED={chosen} make model SCHEDULES={EXAMPLES}")  # noqa: T201

    @seed(chosen + part)
    class Random(Schedule): ...

    with simulated():
        run_state_machine_as_test(Random, settings=SETTINGS)


KEPT = {
    "a stream is trimmed past what a worker holds that stops then": [
        ("worker-1", 0, "nothing"), ("worker-1", 0, "nothing"), ("worker-1", 13, "nothing"), ("worker-1", 0, "nothing"),
        ("worker-1", 0, "nothing"), ("worker-1", 0, "nothing"), ("worker-2", 1, "nothing"), ("worker-1", 0, "nothing"),
        ("worker-2", 0, "stop"),
    ],
}  # fmt: skip
"""Schedules that broke a promise once: the process, its steps after another event, and what happened to it then."""


@pytest.mark.parametrize("story", KEPT)
def test_what_was_found_once_stays_mended(story: str) -> None:
    with simulated():
        schedule = Schedule()
        schedule.begin(forgets=True, attached=True)
        for name, steps, then in KEPT[story]:
            schedule.hurry(name=name, steps=steps, pick=0, key="", payload=0, then=then)
        schedule.teardown()


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_variant_is_found_within_a_bounded_number_of_schedules(mutant: str) -> None:
    bound = settings(SETTINGS, max_examples=BOUND, derandomize=False, phases=[Phase.generate])

    @seed(SEED)
    class Seeded(Schedule): ...

    with simulated(**MUTANTS[mutant]), pytest.raises(BrokenPromise):
        run_state_machine_as_test(Seeded, settings=bound)
