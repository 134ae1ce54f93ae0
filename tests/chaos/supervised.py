"""A worker as `outbox worker --processes 2`: a supervisor in the program's process, and two workers under it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import workers
from outbox.settings import Settings
from tests.chaos import knobs, tasks
from tests.chaos.history import History
from workers.supervisor import run

GRACE = 3.0
TOLD = "CHAOS_SUPERVISED"
"""The environment variable that tells the two what they are to be."""


def supervise(
    settings: Settings, lease: float, slowness: float, version: int, children: bool, turned: dict[str, int]
) -> int:
    """Be the supervisor, to its end; the exit status."""
    os.environ[TOLD] = json.dumps([lease, slowness, version, children, turned])
    return run("tests.chaos.supervised:app", settings, 2, grace=GRACE)


def _made() -> workers.App:
    lease, slowness, version, children, turned = json.loads(os.environ[TOLD])
    tasks.tell(History(Path(os.environ[tasks.HISTORY])), slowness)
    knobs.turn(turned)
    # No option of the command line says it, and all workers of an installation need one lease.
    defaults = workers.Worker.__init__.__kwdefaults__ or {}
    defaults.update(lease=lease, heartbeat=lease / 4)
    return tasks.app(version, children=children)


def __getattr__(name: str) -> workers.App:
    if name != "app":
        raise AttributeError(name)
    globals()["app"] = made = _made()
    return made
