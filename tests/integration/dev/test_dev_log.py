"""The one log of `outbox dev`."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from contextlib import suppress
from typing import Any

import psycopg
import pytest

COLOUR = "\x1b["


def test_every_line_is_named_and_plain_where_there_is_no_terminal(desk: Any) -> None:
    desk.up()
    desk.add("Ada")
    with pytest.raises(psycopg.errors.DivisionByZero):
        desk.rows("SELECT 1/0")
    desk.says("postgres | ERROR: division by zero")
    desk.says("hello Ada")
    assert COLOUR not in desk.log
    names = {line.partition(" | ")[0].strip() for line in desk.log.splitlines()}
    assert names == {"dev", "postgres", "relay", "worker"}
    assert "checkpoint" not in desk.log


def on_a_terminal(desk: Any) -> tuple[subprocess.Popen[bytes], str]:
    """A run whose stderr is a terminal, and all that it showed there."""
    here, there = pty.openpty()
    process = desk.dev(stderr=there)
    os.close(there)
    shown = b""
    try:
        while (data := os.read(here, 65_536)) and not (
            b"worker.started" in (shown := shown + data) and b"relay.leading" in shown
        ):
            pass
        process.send_signal(signal.SIGINT)
        with suppress(OSError):
            while data := os.read(here, 65_536):
                shown += data
    finally:
        os.close(here)
    assert process.wait(timeout=30) == 0
    return process, shown.decode()


def test_names_are_coloured_on_a_terminal(desk: Any) -> None:
    _, shown = on_a_terminal(desk)
    colours = dict(re.findall(r"\x1b\[([0-9;]+)m(worker|relay|dev) +\|\x1b\[0m", shown)[::-1])
    assert len(set(colours)) == 3
    assert "stopped" in shown


def test_no_color_is_respected_on_a_terminal(desk: Any) -> None:
    desk.environment["NO_COLOR"] = "1"
    _, shown = on_a_terminal(desk)
    assert COLOUR not in shown
    assert "worker   | " in shown


def test_as_json_every_line_is_an_object_that_names_its_process(desk: Any) -> None:
    desk.up("--log-format", "json")
    desk.add("Ada")
    desk.says("hello Ada")
    lines = [json.loads(line) for line in desk.log.splitlines()]
    assert {line["process"] for line in lines} == {"dev", "relay", "worker"}
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    assert {"worker.started", "relay.leading", "hello Ada, attempt 1"} <= {line["event"] for line in lines}


def test_the_traceback_of_a_failure_is_shown_but_not_where_the_level_says_otherwise(desk: Any) -> None:
    desk.write(desk.APP.replace("    print", "    raise LookupError(f'no such name: {name}')\n    print"))
    process = desk.up()
    desk.add("Ada")
    desk.says("LookupError: no such name: Ada")
    assert "delivery.failed" in desk.log
    assert desk.log.count("in greet") >= 1
    assert desk.stop(process) == 0
    desk.up("--log-level", "info")
    desk.add("Grace")
    desk.says("delivery.retry", times=2)
    assert "no such name" not in desk.log
