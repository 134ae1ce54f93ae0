"""A seed is a schedule: the same for ever, of kinds that apply, with calm in between."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

from tests.chaos.faults import FAULTS, STEPS
from tests.chaos.knobs import KNOBS
from tests.chaos.mutants import MIXES, MUTANTS
from tests.chaos.schedule import KINDS, PROGRAMS, Schedule, draw

ROOT = Path(__file__).parents[3]
MANY = [draw(seed, 12.0) for seed in range(300)]


def test_a_seed_gives_the_same_schedule_again() -> None:
    assert [draw(seed, 12.0) for seed in range(300)] == MANY
    assert len({schedule.faults for schedule in MANY}) > 290


def test_a_schedule_can_be_kept_as_json() -> None:
    for schedule in MANY:
        assert Schedule.from_json(json.loads(json.dumps(schedule.to_json()))) == schedule


def test_every_kind_is_drawn_and_every_kind_can_be_caused() -> None:
    assert {fault.kind for schedule in MANY for fault in schedule.faults} == KINDS.keys() == FAULTS.keys()


def test_relays_and_workers_die_at_every_failpoint_that_there_is() -> None:
    texts = [file.read_text() for folder in ("relay", "workers") for file in (ROOT / folder).glob("*.py")]
    there = {place for text in texts for place in re.findall(r'reach\("([\w.]+)"\)', text)}
    assert {place for places in STEPS.values() for place in places} == there


def test_the_page_about_chaos_names_what_may_be_found() -> None:
    found = set(re.findall(r'Finding\(\s*"(\w+)"', (ROOT / "tests/chaos/checker.py").read_text())) | {"broken"}
    assert set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/chaos.md").read_text(), re.MULTILINE)) == found


def test_about_a_quarter_of_the_periods_is_calm() -> None:
    """Two faults may fall into one period, so what is counted are seconds without the beginning of one."""
    seconds = [int(fault.at) for schedule in MANY for fault in schedule.faults]
    assert 0.5 < len(seconds) / (12 * len(MANY)) < 1.5
    calm = sum(12 - len({int(fault.at) for fault in schedule.faults}) for schedule in MANY)
    assert 0.25 < calm / (12 * len(MANY)) < 0.6


def test_faults_fall_into_the_run_and_apply_to_its_configuration() -> None:
    for schedule in MANY:
        assert [fault.at for fault in schedule.faults] == sorted(fault.at for fault in schedule.faults)
        for fault in schedule.faults:
            kind = KINDS[fault.kind]
            assert 0 < fault.at <= schedule.length
            assert kind.lasts[0] <= fault.lasts <= kind.lasts[1]
            assert fault.target in kind.targets
            assert kind.needs != "aof" or schedule.persistence != "none"
            assert kind.needs != "replica" or schedule.replica
            assert not fault.kind.startswith("link") or fault.target in schedule.links


def test_the_lame_leave_one_of_each_kind_to_do_the_work() -> None:
    assert any(schedule.lame for schedule in MANY)
    for schedule in MANY:
        assert set(schedule.lame) <= set(PROGRAMS)
        assert len([name for name in schedule.lame if name.startswith("relay")]) <= 1
        assert len([name for name in schedule.lame if name.startswith("worker")]) <= 1


def test_some_schedules_have_child_processes_and_some_a_supervisor_of_a_worker_that_does_its_part() -> None:
    assert any(schedule.children for schedule in MANY)
    assert any(schedule.supervised for schedule in MANY)
    assert not [schedule for schedule in MANY if schedule.supervised and schedule.lame]
    assert 0 < sum(schedule.children + bool(schedule.supervised) for schedule in MANY) < 0.4 * len(MANY)


def test_schedules_that_were_kept_can_be_played() -> None:
    for kept in json.loads((ROOT / "tests/chaos/regressions.json").read_text()):
        schedule = Schedule.from_json(kept["schedule"])
        assert schedule.knobs.keys() <= KNOBS.keys()
        assert {fault.kind for fault in schedule.faults} <= KINDS.keys()


def test_a_mutant_has_faults_that_provoke_it() -> None:
    assert MIXES.keys() == MUTANTS.keys()
    for mix in MIXES.values():
        assert {fault.kind for fault in draw(1, 5.0, mix).faults} <= set(mix) <= KINDS.keys()


def test_every_knob_turns_something_that_is_there() -> None:
    for module, constant, values in KNOBS.values():
        now = getattr(importlib.import_module(module), constant)
        assert all(type(value) is type(now) and value != now for value in values), constant
