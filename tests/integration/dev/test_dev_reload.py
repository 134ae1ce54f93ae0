"""`outbox dev` while files change and workers die."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.slow
def test_a_changed_file_changes_what_the_handler_does(desk: Any) -> None:
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


def test_a_syntax_error_is_shown_and_its_repair_taken_up(desk: Any) -> None:
    desk.up()
    desk.write(desk.APP.replace("async def", "async dof"))
    desk.says("SyntaxError")
    desk.says("it is started again when a file changes")
    desk.add("Ada")
    desk.write(desk.APP)
    desk.says("hello Ada, attempt 1")


def test_what_runs_is_finished_before_the_worker_starts_again(desk: Any) -> None:
    desk.write(desk.SLOW)
    desk.up()
    desk.add("Ada")
    desk.says("begins Ada")
    desk.write(desk.SLOW + "\n# changed\n")
    desk.says("the worker starts again")
    desk.write("", "go")
    desk.says("ends Ada, attempt 1")
    desk.says("worker.started", times=2)
    assert desk.log.count("begins Ada") == 1


@pytest.mark.slow
def test_what_does_not_end_is_handed_back_and_costs_no_attempt(desk: Any) -> None:
    desk.write(desk.SLOW)
    desk.up()
    desk.add("Ada")
    for times in (1, 2):
        desk.says("begins Ada, attempt 1", times=times)
        desk.write(desk.SLOW + f"\n# changed {times}\n")
    desk.says("begins Ada, attempt 1", times=3)
    desk.write("", "go")
    desk.says("ends Ada, attempt 1")
    desk.eventually(lambda: desk.rows("SELECT state FROM outbox.delivery") == [("done",)])


@pytest.mark.slow
def test_without_reload_nothing_starts_again_and_a_worker_that_cannot_start_ends_it_all(desk: Any) -> None:
    process = desk.up("--no-reload")
    desk.write(desk.APP.replace("hello {", "bye {"))
    desk.add("Ada")
    desk.says("hello Ada")
    assert desk.stop(process) == 0
    desk.write("app = None")
    process = desk.dev("--no-reload")
    assert process.wait(timeout=60) == 1, desk.log
    assert "tasks has no workers.App named 'app'" in desk.log


def test_a_worker_that_is_killed_is_started_again(desk: Any) -> None:
    desk.write(
        desk.APP + "\n\n@app.handler('die')\nasync def die() -> None:\n    import os\n    os.kill(os.getpid(), 9)\n"
    )
    desk.up()
    desk.rows("INSERT INTO outbox.event (name, payload) VALUES ('die', '{}') RETURNING seq")
    desk.says("the worker was ended by SIGKILL")
    desk.says("worker.started", times=2)


def test_only_the_folder_that_is_named_is_watched(desk: Any) -> None:
    (desk.folder / "src").mkdir()
    desk.up("--reload-dir", "src")
    desk.write(desk.APP.replace("hello {", "bye {"))
    desk.write("", "src/other.py")
    desk.says("src/other.py changed")
    desk.says("worker.started", times=2)
    assert "tasks.py changed" not in desk.log
