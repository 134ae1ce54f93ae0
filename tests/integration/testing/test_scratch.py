"""Folders with servers' data: none outlives its process for long, and none is taken from a process that lives."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forking import Forked, Programs

from outbox_testing import servers

OWNER = """
import sys, time
from pathlib import Path
from outbox_testing import servers
servers.place_for_data = lambda: Path(sys.argv[1])
with servers.scratch_folder() as folder:
    (folder / "data").touch()
    time.sleep(600)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(servers, "place_for_data", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def own(programs: Programs, place: Path) -> Iterator[Callable[[], tuple[Forked, Path]]]:
    """Start a process with a folder: both."""
    started: list[Forked] = []

    def start() -> tuple[Forked, Path]:
        process = programs.start(["-c", OWNER, str(place)])
        started.append(process)
        while not (found := list(place.glob(f"*-{process.pid}-*/data"))):
            assert process.poll() is None
            time.sleep(0.01)
        return process, found[0].parent

    yield start
    for process in started:
        end(process)


def end(process: Forked) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_others_have_is_not(
    own: Callable[..., Any], place: Path
) -> None:
    killed, left = own()
    _, in_use = own()
    end(killed)
    others = [place / name for name in ("obx-kx3_9a2b", "obx-bench-1", f"other-{killed.pid}-a", f"obx-{os.getpid()}-a")]
    for other in others:
        other.mkdir()
    assert left.exists()
    with servers.scratch_folder() as made:
        assert made.name.startswith(f"obx-{os.getpid()}-")
        assert not left.exists()
        assert in_use.exists()
    assert not made.exists()
    assert all(other.exists() for other in others)


def test_a_folder_whose_owner_has_a_number_that_is_unknown_here_is_left_while_it_is_held(
    own: Callable[..., Any], place: Path
) -> None:
    killed, left = own()
    end(killed)
    held = os.open(left, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with servers.scratch_folder():
        assert left.exists()
    os.close(held)
    with servers.scratch_folder():
        assert not left.exists()
