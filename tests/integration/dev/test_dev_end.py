"""How `outbox dev` ends: by signals, by kill -9, by a server that is gone."""

from __future__ import annotations

import shutil
from typing import Any

import pytest


def test_a_signal_while_the_servers_start_leaves_nothing_and_initdb_that_was_interrupted_is_begun_again(
    bare: Any,
) -> None:
    process = bare.dev()
    bare.eventually(lambda: (bare.folder / ".outbox/valkey").exists())
    assert bare.stop(process) == 0, bare.log
    assert bare.running() == []
    shutil.rmtree(bare.folder / ".outbox/postgres", ignore_errors=True)
    half = bare.folder / ".outbox/postgres/data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    bare.up()


@pytest.mark.slow
def test_a_run_right_after_kill_9_starts_and_finds_its_data_and_kill_9_leaves_nothing_running(desk: Any) -> None:
    process = desk.up()
    desk.add("Ada")
    desk.says("hello Ada")
    desk.eventually(lambda: desk.states() == ["done"])
    process.kill()
    process.wait()
    process = desk.up()
    assert desk.states() == ["done"]
    process.kill()
    process.wait()
    desk.assert_gone()
