"""The demo: the books agree after kills, differences in the database are noticed, and nothing is left running."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from waiting import wait_for

from console.demo.stage import Stage
from outbox.errors import OutboxError


class Theatre:
    """Where demos run: a temporary folder of their own, and a mark in the environment by which processes are found."""

    def __init__(self, folder: Path, mark: Any) -> None:
        self.folder = folder
        self.mark = mark
        self.running = mark.running
        self.assert_gone = mark.assert_gone

    @property
    def environment(self) -> dict[str, str]:
        # What a caller's own shop uses must not matter: nobody listens there.
        elsewhere = {"OUTBOX_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none", "PGHOST": "127.0.0.1"}
        return {**os.environ, **elsewhere, "TMPDIR": str(self.folder), **self.mark.variables, "PYTHONUNBUFFERED": "1"}

    def perform(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "console.main", "demo", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )


@pytest.fixture
def theatre(scratch: Path, mark: Any) -> Iterator[Theatre]:
    folder = Path(tempfile.mkdtemp(dir=scratch))
    folder.chmod(0o755)
    yield Theatre(folder, mark)
    shutil.rmtree(folder, ignore_errors=True)


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """The output up to a line that holds `text`."""
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if text in line:
            return read
    raise AssertionError(f"it ended without saying {text!r}:\n{read}")


@pytest.mark.slow
def test_the_books_agree_after_kills_and_keep_leaves_it_up_until_ctrl_c(theatre: Theatre) -> None:
    demo = theatre.perform("--requests", "120", "--seed", "7", "--keep")
    try:
        said = read_until(demo, "logs in")
        assert "The books agree." in said
        for name in ("lost", "duplicate", "ghost"):
            assert re.search(rf"^  {name} +0$", said, re.MULTILINE), said
        assert re.search(r"kill -9 \d+: the relay that leads", said)
        assert re.search(r"kill -9 \d+: a worker with \d+ unfinished", said)
        assert "no tax rate for Atlantis" in said
        exported = dict(re.findall(r"export (\w+)=(.*)", said))
        with psycopg.connect(shlex.split(exported["OUTBOX_DATABASE_URL"])[0]) as connection:
            assert (
                connection.execute(
                    "SELECT count(*) FROM effects GROUP BY event_id, handler HAVING count(*) > 1"
                ).fetchall()
                == []
            )
        address = re.search(r"API (http://[0-9.:]+)/docs", said)
        assert address is not None
        assert httpx.get(f"{address[1]}/health", trust_env=False).json() == {"status": "ok"}
        demo.send_signal(signal.SIGINT)
        assert demo.wait(timeout=30) == 0
    finally:
        demo.kill()
        demo.communicate()
    theatre.assert_gone()
    assert list(theatre.folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "at"), [(signal.SIGINT, "starting PostgreSQL"), (signal.SIGTERM, "requests begin")])
def test_an_interrupted_demo_leaves_no_process_and_no_file(theatre: Theatre, number: signal.Signals, at: str) -> None:
    demo = theatre.perform("--requests", "2000")
    try:
        read_until(demo, at)
        wait_for(lambda: len(theatre.running()) > (1 if number == signal.SIGINT else 5), "the processes")
        demo.send_signal(number)
        said, _ = demo.communicate(timeout=30)
    finally:
        demo.kill()
        demo.communicate()
    assert demo.returncode == 130, said
    theatre.assert_gone()
    assert list(theatre.folder.iterdir()) == []


@pytest.mark.slow
def test_a_demo_that_is_killed_leaves_no_process(theatre: Theatre) -> None:
    demo = theatre.perform("--requests", "2000")
    try:
        read_until(demo, "requests begin")
    finally:
        demo.kill()
        demo.communicate()
    theatre.assert_gone()


def test_an_error_on_the_stage_leaves_no_process_and_no_file(theatre: Theatre, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in theatre.mark.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", str(theatre.folder))
    stage = Stage()
    # All programs on it are of one kind.
    stage.workers = stage.relays = []
    with pytest.raises(RuntimeError, match="the show must not go on"), stage:  # noqa: PT012
        assert len(theatre.running()) > 1
        raise RuntimeError("the show must not go on")
    theatre.assert_gone()
    assert not stage.folder.exists()


def test_an_api_that_does_not_start_leaves_no_process_and_no_file(
    theatre: Theatre, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in theatre.mark.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", str(theatre.folder))
    stage = Stage()
    stage.api.arguments = ["uvicorn", "shop.nothing:app"]
    with pytest.raises(OutboxError, match=r"(?s)api did not start.*shop\.nothing"), stage:
        pass
    theatre.assert_gone()
    assert not stage.folder.exists()
