"""`outbox dev` while files change and workers die."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest


@pytest.mark.slow
def test_a_changed_file_changes_what_the_handler_does_and_what_keeps_the_worker_from_running_is_survived(
    desk: Any,
) -> None:
    desk.up()
    desk.add("Ada")
    desk.says("hello Ada")
    (desk.folder / "shop").mkdir()
    desk.write("GREETING = 'good day'\n", "shop/words.py")
    desk.write(
        desk.APP.replace("from workers", "from shop.words import GREETING\nfrom workers").replace(
            "hello {", "{GREETING} {"
        )
    )
    desk.says("worker.started", times=2)
    desk.add("Grace")
    desk.says("good day Grace, attempt 1")
    started = desk.log.count("worker.started")
    desk.write("GREETING = 'good eve'\n", "shop/words.py")
    desk.says("worker.started", times=started + 1)
    desk.add("Joan")
    desk.says("good eve Joan, attempt 1")
    # A syntax error is shown, and its repair taken up.
    desk.write(desk.APP.replace("async def", "async dof"))
    desk.says("SyntaxError")
    desk.says("it is started again when a file changes")
    desk.add("Edith")
    started = desk.log.count("worker.started")
    desk.write(desk.APP)
    desk.says("hello Edith, attempt 1")
    # A worker that is killed is started again.
    desk.says("worker.started", times=started + 1)
    started = desk.log.count("worker.started")
    desk.rows("INSERT INTO outbox.event (name, payload) VALUES ('die', '{}') RETURNING seq")
    desk.says("the worker was ended by SIGKILL")
    desk.says("worker.started", times=started + 1)


@pytest.mark.slow
def test_what_runs_is_finished_or_handed_back_before_a_restart_and_a_second_signal_ends_all_at_once(
    desk: Any,
) -> None:
    desk.write(desk.SLOW)
    process = desk.up()
    desk.add("Ada")
    desk.says("begins Ada")
    desk.write(desk.SLOW + "\n# changed\n")
    desk.says("the worker starts again")
    desk.write("", "go")
    desk.says("ends Ada, attempt 1")
    desk.says("worker.started", times=2)
    assert desk.log.count("begins Ada") == 1
    # What does not end:
    (desk.folder / "go").unlink()
    desk.add("Grace")
    for times in (1, 2):
        desk.says("begins Grace, attempt 1", times=times)
        desk.write(desk.SLOW + f"\n# changed {times}\n")
    desk.says("begins Grace, attempt 1", times=3)
    desk.write("", "go")
    desk.says("ends Grace, attempt 1")
    desk.eventually(lambda: desk.states() == ["done", "done"])
    # The end:
    (desk.folder / "go").unlink()
    stopped = desk.log.count("worker.stopped")
    desk.add("Joan")
    desk.says("begins Joan")
    process.send_signal(signal.SIGINT)
    desk.says("stopping")
    began = time.monotonic()
    assert desk.stop(process) == 0
    assert time.monotonic() - began < 4
    assert desk.running() == []
    assert desk.log.count("worker.stopped") == stopped


@pytest.mark.slow
def test_without_reload_nothing_starts_again_and_a_worker_that_cannot_start_ends_it_all(desk: Any) -> None:
    process = desk.up("--no-reload")
    desk.write(desk.APP.replace("hello {", "bye {"))
    desk.add("Ada")
    desk.says("hello Ada")
    assert desk.stop(process) == 0
    desk.write("app = None")
    process = desk.dev("--no-reload")
    assert process.wait(timeout=60) == 2, desk.log
    assert "tasks has no workers.App named 'app'" in desk.log
