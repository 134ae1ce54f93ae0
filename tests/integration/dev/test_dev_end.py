"""How `outbox dev` ends: by signals, by kill -9, by a server that is gone."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import Any

import pytest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_worker_relay_and_servers_in_this_order_and_leaves_nothing(
    desk: Any, number: signal.Signals
) -> None:
    process = desk.up()
    assert {"postgres", "valkey", "tether", "workers"} <= set(re.findall(r"\w+", " ".join(desk.running())))
    began = time.monotonic()
    assert desk.stop(process, number) == 0, desk.log
    assert time.monotonic() - began < 15
    assert desk.running() == []
    assert desk.log.index("worker.stopped") < desk.log.index("relay.stopped") < desk.log.index("| stopped")


def test_a_signal_while_the_servers_start_leaves_nothing(desk: Any) -> None:
    process = desk.dev()
    desk.eventually(lambda: (desk.folder / ".outbox/valkey").exists())
    assert desk.stop(process) == 0, desk.log
    assert desk.running() == []
    desk.up()


def test_a_second_signal_ends_all_at_once(desk: Any) -> None:
    desk.write(desk.SLOW)
    process = desk.up()
    desk.add("Ada")
    desk.says("begins Ada")
    process.send_signal(signal.SIGINT)
    desk.says("stopping")
    began = time.monotonic()
    assert desk.stop(process) == 0
    assert time.monotonic() - began < 4
    assert desk.running() == []
    assert "worker.stopped" not in desk.log


@pytest.mark.slow
def test_kill_9_leaves_nothing_running_and_the_next_run_finds_its_data(desk: Any) -> None:
    process = desk.up()
    desk.add("Ada")
    desk.says("hello Ada")
    desk.eventually(lambda: desk.rows("SELECT state FROM outbox.delivery") == [("done",)])
    process.kill()
    process.wait()
    desk.assert_gone()
    desk.up()
    assert desk.rows("SELECT state FROM outbox.delivery") == [("done",)]


@pytest.mark.slow
def test_a_run_right_after_kill_9_starts(desk: Any) -> None:
    process = desk.up()
    process.kill()
    process.wait()
    desk.up()


def test_a_server_that_ends_by_itself_ends_it_all_with_the_place_of_its_log(desk: Any) -> None:
    process = desk.up()
    pid = int((desk.folder / ".outbox/postgres/data/postmaster.pid").read_text().splitlines()[0])
    os.kill(pid, signal.SIGKILL)
    assert process.wait(timeout=40) == 1
    assert re.search(r"dev +\| postgres was ended by SIGKILL: see .+postgres\.log", desk.log)
    assert desk.running() == []
