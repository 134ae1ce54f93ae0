"""Many runs at a time: each player is a process of its own, with its own mounts, and plays one run after the other."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import shutil
import signal
import subprocess
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from outbox_testing.servers import scratch_folder
from tests.chaos import mutants
from tests.chaos.programs import die_with_parent
from tests.chaos.run import BOUND, LONGEST, Result, play
from tests.chaos.schedule import Schedule, draw
from tests.chaos.template import Template, make_template

KEPT = Path(".chaos")
"""Where histories, logs and stories of runs that failed are put."""

MUTANT_BOUND = 5.0
"""Seconds after which what a mutant has not done counts as stuck."""


@dataclass(frozen=True)
class Task:
    """What one player is asked to do: a run, or for a mutant as many runs as it takes to catch it."""

    schedules: tuple[Schedule, ...]
    mutant: str = ""

    @property
    def name(self) -> str:
        """What it is called in files and logs."""
        return f"{self.mutant.replace(' ', '-') or 'seed'}-{self.schedules[0].seed}"


def hunt(mutant: str, first: int, seeds: int, length: float) -> Task:
    """Play a mutant on these seeds until it is caught."""
    mix = mutants.MIXES[mutant]
    return Task(tuple(draw(seed, length, mix) for seed in range(first, first + seeds)), mutant)


def control(mutant: str, seed: int, length: float) -> Task:
    """The same faults as a mutant's, without its mistake: what the mutant is caught by is this mistake alone."""
    return Task((draw(seed, length, mutants.MIXES[mutant]),), mutants.NET)


def play_all(tasks: list[Task], jobs: int) -> Iterator[tuple[Task, Result]]:
    """The last result of each task, as they come, `jobs` at a time."""
    with scratch_folder() as folder:
        template = make_template(folder / "template")
        # Not forked: each has its own process from which it forks programs.
        spawning = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=spawning, initializer=_prepare) as players:
            asked = {players.submit(_perform, task, folder, template): task for task in tasks}
            try:
                for done in as_completed(asked):
                    yield asked[done], done.result()
            except BaseException:
                for future in asked:
                    future.cancel()
                for process in list(players._processes.values()):
                    process.kill()
                raise


def _prepare() -> None:
    die_with_parent()
    # Ctrl-C is for the one that shows the progress: it ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _mount_alone()


def _mount_alone() -> None:
    """Give this process and its children mounts of their own, which vanish with them, if that is permitted."""
    clone_newns = 0x00020000
    if ctypes.CDLL(None).unshare(clone_newns) == 0:
        subprocess.run(["mount", "--make-rprivate", "/"], check=False, capture_output=True)


def _perform(task: Task, folder: Path, template: Template) -> Result:
    for schedule in task.schedules:
        place = Path(mkdtemp(prefix=f"{task.name}-", dir=folder))
        place.chmod(0o755)
        try:
            result = _play(schedule, task.mutant, place, template)
            if not result.ok and task.mutant not in mutants.MUTANTS:
                _keep(result, place / "histories", KEPT / task.name)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        if not result.ok:
            break
    return result


def _play(schedule: Schedule, mutant: str, place: Path, template: Template) -> Result:
    try:
        bound, longest = (MUTANT_BOUND, MUTANT_BOUND) if mutant in mutants.MUTANTS else (BOUND, LONGEST)
        return play(schedule, place, template, mutant=mutant, bound=bound, longest=longest)
    except Exception as error:
        # One broken run must not end the others.
        return Result(
            schedule.seed,
            schedule.length,
            mutant,
            findings=(f"broken: {type(error).__name__}",),
            kinds={"broken": 1},
            story=traceback.format_exc(),
            schedule=schedule.to_json(),
        )


def _keep(result: Result, histories: Path, kept: Path) -> None:
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    if histories.exists():
        shutil.copytree(histories, kept, dirs_exist_ok=True)
    (kept / "story.txt").write_text(result.story + "\n")
    (kept / "schedule.json").write_text(json.dumps(result.schedule, indent=1) + "\n")
