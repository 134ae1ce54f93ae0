"""The command line without servers."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
import redis
import typer
from forking import Programs

from console import listing, main, moments, options
from console.commands.status import Role, unhealthy
from console.faults import explained
from console.program import app
from outbox.admin import Count, HandlerStatus, Leader, Status
from outbox.errors import ConfigurationError

COMMANDS = ["migrate", "demo", "relay", "worker", "dev", "status", "top", "events", "dead", "replay", "upkeep"]
COMMANDS += ["pause", "resume", "cancel", "discard", "forget", "rename", "purge", "doctor"]
Run = Callable[..., subprocess.CompletedProcess[str]]
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture(scope="session")
def run(programs: Programs) -> Run:
    """`outbox` in a process of its own that has no settings."""

    def run(*arguments: str, code: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
        start = ["-c", code] if code else ["-m", "console.main"]
        return programs.run([*start, *arguments], env={**clean, "COLUMNS": "120", **environment})

    return run


def run_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The same in this process, for what ends before it does anything: exit status, stdout and stderr."""
    return (main.run(arguments), *capsys.readouterr())


# Help and usage -------------------------------------------------------------------------------------------------------


def test_the_commands_are_those_that_work() -> None:
    group = typer.main.get_command(app)
    assert sorted(group.commands) == sorted(COMMANDS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_here(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert f"outbox {command}" in out.partition("Usage")[2].partition("\n")[2]


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version").stdout.startswith("outbox 0.")


@pytest.mark.parametrize(
    "arguments",
    [
        ["sing"],
        ["replay"],
        ["replay", "--all", "--handler", "h"],
        ["replay", "not-an-id"],
        ["replay", "--all", "--rate", "0"],
        ["dead", "--since", "yesterday"],
        ["dead", "--limit", "0"],
        ["events", "-o", "xml"],
        ["worker"],
        ["worker", "shop.tasks"],
        ["worker", "shop.tasks:app", "--processes", "0"],
        ["dev"],
        ["dev", "shop.tasks"],
        ["dev", "shop.tasks:app", "--reload-dir", "nowhere"],
        ["dev", "shop.tasks:app", "--port", "0"],
        ["migrate", "--sql", "--check"],
        ["migrate", "--roles-sql"],
        ["migrate", "--writer", "shop"],
        ["status", "--check", "moon"],
        ["status", "not-an-id"],
        ["top", "--interval", "0"],
        ["events", "--where", "user_id=7"],
        ["events", "--handler", ""],
        ["dead", "--look-at", "0"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_with_one_line_and_leaves_stdout_empty(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_here(capsys, *arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"outbox( \w+)?: .+; see `outbox( \w+)? --help`\n", err)
    assert "Invalid value: " not in err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["sing"], "outbox: No such command 'sing'; see `outbox --help`"),
        (
            ["worker", "shop"],
            "outbox worker: say where the application is, as MODULE:APP, for example shop.tasks:app; ",
        ),
        (["dev", "shop"], "outbox dev: say where the application is, as MODULE:APP, for example shop.tasks:app; "),
        (["replay"], "outbox replay: say which: ids, --handler, --name, --since or another filter, or --all; "),
        (["events", "-o", "xml"], "outbox events: Invalid value for '--output' / '-o': 'xml' is not one of 'table', "),
        (["dead", "--since", "1h", "--until", "2h"], "outbox dead: --since lies after --until; "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_line_says_what_is_wrong(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(capsys, *arguments)[2].startswith(line)


def test_without_arguments_there_is_help_and_the_status_of_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_here(capsys)
    assert (code, err) == (2, "")
    assert "Usage: outbox" in out


@pytest.mark.parametrize("close", [">&-", "| true", ">/dev/full", "2>&- | true", "2>&-"])
def test_an_output_that_cannot_be_written_is_no_traceback(close: str) -> None:
    command = f"{sys.executable} -m console.main migrate --roles-sql --writer shop {close}"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, env=clean)
    full = "outbox: the output cannot be written: No space left on device\n"
    assert result.stderr == (full if "full" in close else "")
    assert result.returncode == (1 if "full" in close else 0)


@pytest.mark.parametrize("arguments", [["status"]])
def test_without_a_database_one_line_says_what_to_set(run: Run, arguments: list[str], tmp_path: Path) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "outbox: no database: set OUTBOX_DATABASE_URL (postgresql://user@host/name) or pass --database-url\n"
    )


def test_sql_is_printed_without_a_database(run: Run) -> None:
    result = run("migrate", "--sql", "--schema", "billing")
    assert result.returncode == 0
    assert "CREATE TABLE billing.event" in result.stdout
    result = run("migrate", "--roles-sql", "--writer", "shop")
    assert 'GRANT INSERT ON outbox.event, outbox.scheduled TO "shop";' in result.stdout


def test_without_the_cli_extra_the_advice_is_to_install_it(run: Run) -> None:
    code = "import sys; sys.modules['typer'] = None; from console.main import main; main()"
    result = run(code=code)
    assert result.returncode == 1
    assert result.stderr == ("outbox: typer is not installed; this needs: pip install 'transactional-outbox[cli]'\n")


def test_a_command_that_needs_another_extra_says_which_and_a_missing_module_of_the_user_is_a_traceback(
    run: Run,
) -> None:
    start = "import sys; sys.modules[{0!r}] = None; from console.main import main; sys.argv[1:] = {1!r}; main()"
    result = run(code=start.format("pydantic", ["status"]))
    assert result.stderr == "outbox: pydantic is not installed; this needs: pip install 'transactional-outbox[cli]'\n"
    result = run(code=start.format("httpx", ["demo"]))
    assert result.stderr == "outbox: httpx is not installed; this needs: pip install 'transactional-outbox[demo]'\n"
    result = run(code=start.format("outbox.admin", ["status"]))
    assert "Traceback" in result.stderr


def test_starting_loads_no_relay_worker_redis_or_settings() -> None:
    code = (
        "import sys, console.program;"
        "print([name for name in ('redis', 'relay', 'workers', 'console.demo', 'psycopg', 'pydantic', 'sqlalchemy')"
        " if name in sys.modules])"
    )
    bare = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert bare.stdout == "[]\n"


def test_the_working_directory_is_searched_last(run: Run, tmp_path: Path) -> None:
    (tmp_path / "workers.py").write_text("raise RuntimeError('hidden')")
    code = (
        f"import os; os.chdir({str(tmp_path)!r});"
        "from console.commands.worker import find_modules_here; find_modules_here(); find_modules_here();"
        "import sys, workers;"
        "print(sys.path.count(os.getcwd()), sys.path[-1] == os.getcwd(), hasattr(workers, '__path__'))"
    )
    assert run(code=code, PYTHONSAFEPATH="1").stdout == "1 True True\n"


# Settings ----------------------------------------------------------------------------------------------------------


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_SCHEMA", "from_environment")
    monkeypatch.setenv("OUTBOX_PREFIX", "p")
    assert options.settings(schema_name=None).schema_name == "from_environment"
    found = options.settings(schema_name="from_flag", prefix=None)
    assert (found.schema_name, found.prefix) == ("from_flag", "p")


def test_wrong_settings_are_refused_without_their_values() -> None:
    with pytest.raises(ConfigurationError, match="log level"):
        options.settings(log_level="loud")
    with pytest.raises(ConfigurationError, match="log format"):
        options.settings(log_format="xml")
    with pytest.raises(ConfigurationError, match="wrong setting: database_url") as caught:
        options.settings(database_url=["s3cret"])
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("flag", "variable", "file", "expected"),
    [
        ("f", "v", "d", "f"),
        (None, "v", "d", "v"),
        (None, None, "d", "d"),
        (None, None, None, "outbox"),
    ],
)
def test_handlers_write_to_the_schema_that_the_worker_serves(
    run: Run, tmp_path: Path, flag: str | None, variable: str | None, file: str | None, expected: str
) -> None:
    (tmp_path / ".env").write_text(f"OUTBOX_SCHEMA={file}\n" if file else "")
    code = (
        f"import os; os.chdir({str(tmp_path)!r}); from console import options;"
        f"found = options.settings(schema_name={flag!r});"
        "import outbox; print(found.schema_name, outbox.metadata.schema)"
    )
    printed = run(code=code, **({"OUTBOX_SCHEMA": variable} if variable else {}))
    assert printed.stdout == f"{expected} {expected}\n"


# Times, output and errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90s", NOW - timedelta(seconds=90)),
        ("2h", NOW - timedelta(hours=2)),
        ("1d12h", NOW - timedelta(hours=36)),
        (" 1w ", NOW - timedelta(weeks=1)),
        ("2026-01-31", NOW.replace(hour=0)),
        ("2026-01-31T12:00Z", NOW),
        ("2026-01-31 13:00+01:00", NOW),
    ],
)
def test_times_are_ago_or_iso_in_utc(text: str, moment: datetime) -> None:
    assert moments.parse(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "h", "2", "2x", "-2h", "yesterday", "2026-13-01", "999999w"])
def test_other_times_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"neither a time like 2h"):
        moments.parse(text, NOW)


def test_no_cell_can_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    listing.table(["A"], [["\x1b[31mred\x07\r\nnext [bold]not markup[/bold]"]])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\x07" not in printed
    assert " [31mred   next [bold]not markup[/bold]" in printed


def test_a_pipe_gets_whole_rows_without_colours(capsys: pytest.CaptureFixture[str]) -> None:
    listing.table(["A", "B"], [["x" * 500, 1234]])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "x" * 500 in lines[1]
    assert lines[1].rstrip().endswith("1,234")


@pytest.mark.parametrize("arguments", [["--help"], ["replay", "--help"], ["sing"], ["status"]], ids=" ".join)
def test_what_is_no_terminal_gets_no_escape_codes(run: Run, arguments: list[str]) -> None:
    result = run(*arguments, TERM="xterm-256color", COLORTERM="truecolor")
    assert "\x1b" not in result.stdout + result.stderr


def test_a_terminal_has_colours_unless_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert listing.console(Terminal()).color_system is not None
    monkeypatch.setenv("NO_COLOR", "1")
    assert listing.console(Terminal()).no_color
    assert not listing.console(io.StringIO()).is_terminal


def test_json_has_every_field_and_jsonl_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": UUID(int=1), "at": NOW, "age": timedelta(seconds=1.5), "text": "ä"}, {"id": None}]
    listing.show(rows, {"id": "ID"}, listing.Form.JSON, empty="none")
    assert json.loads(capsys.readouterr().out) == [
        {"id": str(UUID(int=1)), "at": "2026-01-31T12:00:00+00:00", "age": 1.5, "text": "ä"},
        {"id": None},
    ]
    listing.show(rows, {"id": "ID"}, listing.Form.JSONL, empty="none")
    assert len(capsys.readouterr().out.splitlines()) == 2
    listing.show([], {"id": "ID"}, listing.Form.JSON, empty="none")
    assert json.loads(capsys.readouterr().out) == []


def test_an_empty_table_is_a_remark_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    listing.show([], {"id": "ID"}, listing.Form.TABLE, empty="none")
    assert capsys.readouterr() == ("", "none\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.35, "350 ms"), (12.9, "12 s"), (119, "119 s"), (300, "5 min"), (7200, "2 h"), (200_000, "2 d")],
)
def test_a_length_of_time_is_rounded_to_what_matters(seconds: float, text: str) -> None:
    assert listing.span(timedelta(seconds=seconds)) == text


def test_errors_of_servers_are_explained_and_bugs_are_not() -> None:
    assert "outbox migrate" in (explained(psycopg.errors.UndefinedTable("x")) or "")
    assert "--roles-sql" in (explained(psycopg.errors.InsufficientPrivilege("x")) or "")
    assert "cannot reach PostgreSQL" in (explained(psycopg.OperationalError("refused")) or "")
    assert "cannot reach Redis" in (explained(redis.ConnectionError("refused")) or "")
    wrapped = RuntimeError("wrapped")
    wrapped.orig = psycopg.errors.UndefinedTable("x")  # type: ignore[attr-defined]
    assert "outbox migrate" in (explained(wrapped) or "")
    assert explained(KeyError("bug")) is None


# Health checks -----------------------------------------------------------------------------------------------------


def a_status(*, leads: bool = True, seen: timedelta | None = timedelta(0)) -> Status:
    handler = HandlerStatus(
        "h",
        "a",
        "attached",
        False,
        None,
        None,
        Count(0),
        None,
        Count(0),
        Count(0),
        NOW - (seen or timedelta(0)),
    )
    return Status(
        schema="outbox",
        at=NOW,
        position=None,
        last_tick_at=None,
        leader=Leader(1, "outbox", None, None, None, None) if leads else None,
        events=Count(0),
        unpublished=Count(0),
        oldest_unpublished_at=None,
        handlers=() if seen is None else (handler,),
    )


def test_a_relay_is_healthy_while_one_leads() -> None:
    assert unhealthy(a_status(leads=True), Role.RELAY) is None
    assert unhealthy(a_status(leads=False), Role.RELAY) == "relay: none leads"


def test_workers_are_healthy_while_one_was_seen() -> None:
    assert unhealthy(a_status(seen=timedelta(seconds=29)), Role.WORKER) is None
    assert unhealthy(a_status(seen=timedelta(seconds=31)), Role.WORKER) == "worker: none was seen for 31 s"
    assert unhealthy(a_status(seen=None), Role.WORKER) == "worker: no handler is registered"
