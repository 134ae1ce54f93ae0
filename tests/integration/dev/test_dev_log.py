"""The one log of `outbox dev`."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from forking import Forked

COLOUR = "\x1b["


def test_every_line_is_named_and_plain_where_there_is_no_terminal_and_a_server_that_ends_by_itself_ends_it_all(
    desk: Any,
) -> None:
    process = desk.up()
    desk.add("Ada")
    with pytest.raises(psycopg.errors.DivisionByZero):
        desk.rows("SELECT 1/0")
    desk.says("postgres | ERROR: division by zero")
    desk.says("hello Ada")
    assert COLOUR not in desk.log
    names = {line.partition(" | ")[0].strip() for line in desk.log.splitlines()}
    assert names == {"dev", "postgres", "relay", "worker"}
    assert "checkpoint" not in desk.log
    # A failure has its traceback.
    desk.add("Nobody")
    desk.says("LookupError: no such name: Nobody")
    assert "delivery.failed" in desk.log
    assert desk.log.count("in greet") >= 1
    # A second one in the same folder is refused with the first one's pid.
    refused = desk.run("tasks:app")
    assert refused.returncode == 2
    assert f"as process {process.pid}" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1

    pid = int((desk.folder / ".outbox/postgres/data/postmaster.pid").read_text().splitlines()[0])
    os.kill(pid, signal.SIGKILL)
    assert process.wait(timeout=40) == 1
    assert re.search(r"dev +\| postgres was ended by SIGKILL: see .+postgres\.log", desk.log)
    assert desk.running() == []


def end(desk: Any, process: Forked, number: signal.Signals) -> None:
    """A signal ends all within moments and leaves nothing."""
    assert {"postgres", "valkey", "tether", "workers"} <= set(re.findall(r"\w+", " ".join(desk.running())))
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=30) == 0
    assert time.monotonic() - began < 15
    assert desk.running() == []


def in_order(shown: str) -> bool:
    """Worker, relay and servers were stopped in this order."""
    shown = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    last = re.search(r"(?<!\.)\bstopped\b", shown)
    return last is not None and shown.index("worker.stopped") < shown.index("relay.stopped") < last.start()


def on_a_terminal(desk: Any, number: signal.Signals) -> str:
    """A run whose stderr is a terminal, until a signal: all that it showed there."""
    here, there = pty.openpty()
    process = desk.dev(stderr=there)
    os.close(there)
    shown = b""
    with open(here, "rb", buffering=0) as terminal:
        while b"worker.started" not in shown or b"relay.leading" not in shown:
            shown += terminal.read(65_536)
        with ThreadPoolExecutor(1) as beside:
            ending = beside.submit(end, desk, process, number)
            with suppress(OSError):
                while data := terminal.read(65_536):
                    shown += data
            ending.result()
    assert process.returncode == 0
    return shown.decode()


def test_on_a_terminal_names_are_coloured_and_ctrl_c_stops_worker_relay_and_servers_in_this_order(desk: Any) -> None:
    shown = on_a_terminal(desk, signal.SIGINT)
    colours = dict(re.findall(r"\x1b\[([0-9;]+)m(worker|relay|dev) +\|\x1b\[0m", shown)[::-1])
    assert len(set(colours)) == 3
    assert in_order(shown)


def test_no_color_is_respected_on_a_terminal_and_sigterm_stops_all_in_order(desk: Any) -> None:
    desk.environment["NO_COLOR"] = "1"
    shown = on_a_terminal(desk, signal.SIGTERM)
    assert COLOUR not in shown
    assert "worker   | " in shown
    assert in_order(shown)


def test_as_json_every_line_is_an_object_that_names_its_process_and_sighup_stops_all_in_order(desk: Any) -> None:
    process = desk.up("--log-format", "json")
    desk.add("Ada")
    desk.says("hello Ada")
    end(desk, process, signal.SIGHUP)
    lines = [json.loads(line) for line in desk.log.splitlines()]
    assert {line["process"] for line in lines} == {"dev", "relay", "worker"}
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    assert {"worker.started", "relay.leading", "hello Ada, attempt 1"} <= {line["event"] for line in lines}
    assert in_order(desk.log)
