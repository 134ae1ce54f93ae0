"""Whatever is typed wrongly, to whichever command: one sentence and status 2. A server that is away: one line and 1."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer
from typer.core import TyperCommand

from console import main
from console.faults import explained, from_input
from console.program import app
from outbox import telemetry
from outbox.errors import ConfigurationError, PayloadError, SchemaError, UnusableError
from outbox.settings import Settings
from workers import supervisor
from workers.service import MISCONFIGURED, REFUSED

COMMANDS: dict[str, TyperCommand] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
ID = "0197b6b0-5d3e-7c2a-9f00-3d2b6c1a7e55"
NEEDED = {
    "worker": ["shop.tasks:app"],
    "dev": ["shop.tasks:app"],
    "replay": ["--all", "--yes"],
    "pause": ["relay", "--yes"],
    "resume": ["relay", "--yes"],
    "cancel": [ID, "--yes"],
    "discard": ["--all", "--reason", "x", "--yes"],
    "forget": ["h", "--yes"],
    "rename": ["h", "g", "--yes"],
    "purge": ["--key", "k", "--reason", "x", "--yes"],
}
"""What a command cannot do without."""

WRONG = {
    "--database-url": ["s3cret", "mysql://app:s3cret@db/shop", "postgresql://app:s3/cret@db:x/shop"],
    "--redis-url": ["s3cret", "http://:s3cret@redis", "redis://:s3cret@redis:x"],
    "--schema": ["Bad Name", "public", ""],
    "--prefix": ["a b", "{}"],
    "--log-level": ["loud"],
    "--log-format": ["xml"],
    "--output": ["xml"],
    "--metrics-port": ["-1", "70000", "http"],
}
SERVES = ("relay", "worker", "dev", "demo")
"""They wait for a server that is away, or bring their own."""


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """No variables of ours, and no `.env`; a schema that was given by flag is forgotten with the test."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "RELAY_DATABASE_URL", "REDIS_URL", "PREFIX", "LOG_LEVEL", "LOG_FORMAT"):
        monkeypatch.delenv(f"OUTBOX_{name}", raising=False)
    monkeypatch.setenv("OUTBOX_SCHEMA", "outbox")
    # Of those that log: it would stay set up for other tests.
    monkeypatch.setattr("outbox.telemetry.configure", lambda level, form: None)
    # Nothing is reached by it should a wrong value be let through.
    monkeypatch.setenv("OUTBOX_DATABASE_URL", "postgresql://app@127.0.0.1:1/shop")


def flags(name: str) -> set[str]:
    return {flag for parameter in COMMANDS[name].params for flag in parameter.opts}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_value_of_any_setting_is_one_sentence_and_status_2(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for flag in WRONG.keys() & flags(name):
        for value in WRONG[flag]:
            monkeypatch.setenv("OUTBOX_SCHEMA", "outbox")
            assert main.run([name, *NEEDED.get(name, []), flag, value]) == 2, (flag, value)
            out, err = capsys.readouterr()
            assert (out, err.count("\n")) == ("", 1), (flag, value, err)
            assert err.startswith("outbox")
            assert "s3cret" not in err
            assert "Traceback" not in err


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_flag_or_argument_is_one_sentence_and_status_2(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (["--nonsense"], ["\x00", "\N{SNOWMAN}", "x", "y"]):
        assert main.run([name, *wrong]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1), err
        assert err.endswith(f"see `outbox {name} --help`\n")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in SERVES])
def test_a_database_that_is_away_is_one_line_that_says_where_and_status_1(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    away = "postgresql://app:s3cret@127.0.0.1:1/shop"
    assert main.run([name, *NEEDED.get(name, []), "--database-url", away]) == 1
    out, err = capsys.readouterr()
    about = [line for line in err.splitlines() if not line.startswith("outbox: cannot reach Redis")]
    assert len(about) == 1, err
    assert about[0].startswith("outbox: cannot reach PostgreSQL")
    assert "127.0.0.1" in about[0]
    assert "s3cret" not in out + err


@pytest.mark.parametrize("name", [name for name in COMMANDS if "--database-url" in flags(name) and name != "dev"])
def test_no_address_of_a_database_is_one_line_that_says_what_to_set_and_status_2(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OUTBOX_DATABASE_URL")
    assert main.run([name, *NEEDED.get(name, [])]) == 2
    assert capsys.readouterr() == (
        "",
        "outbox: no database: set OUTBOX_DATABASE_URL (postgresql://user@host/name) or pass --database-url\n",
    )


HANDLER = "from workers import App\napp = App()\n@app.handler('e', name='a b')\nasync def h(): ...\n"
"""No handler can have such a name."""


NO_MODULES = {
    "nowhere:app": "no module 'nowhere'",
    "json.nowhere:app": "no module 'json.nowhere'",
    "a-b:app": "'a-b:app' is no MODULE:APP",
}
NO_APPS = {"json:app": "json has no workers.App named 'app'", "odd_tasks:app": "'a b'"}
"""What is in a module may change while `outbox dev` runs."""


@pytest.mark.parametrize(
    ("command", "target", "sentence"),
    [
        *((["worker"], *each) for each in (NO_MODULES | NO_APPS).items()),
        *((["worker", "--processes", "3"], *each) for each in (NO_MODULES | NO_APPS).items()),
        *((["dev"], *each) for each in NO_MODULES.items()),
    ],
)
def test_a_target_that_is_no_application_is_one_sentence_and_status_2(
    command: list[str],
    target: str,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "odd_tasks", raising=False)
    monkeypatch.setattr(telemetry, "configure", lambda *_: None)
    (tmp_path / "odd_tasks.py").write_text(HANDLER)
    assert main.run([*command, target]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), "Traceback" in err) == ("", 1, False)
    assert sentence in err


@pytest.mark.parametrize(("child", "status"), [(MISCONFIGURED, 2), (REFUSED, 1)])
def test_several_processes_that_refuse_to_work_end_all_and_are_not_started_again(
    child: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    start = supervisor.Child.start
    monkeypatch.setattr(supervisor.Child, "start", lambda self: (begun.append(self.number), start(self)))
    several = supervisor.Supervisor("tasks:app", Settings(), 3)
    several._command = [sys.executable, "-S", "-c", f"raise SystemExit({child})"]
    assert several.run() == status
    assert begun == [0, 1, 2]


def test_what_was_given_is_wrong_input_and_what_a_server_is_like_is_not() -> None:
    for wrong in (ConfigurationError("unknown log level"), PayloadError("no name"), psycopg.DataError("out of range")):
        assert from_input(wrong)
        assert explained(wrong)
    assert not from_input(UnusableError("this server is a standby"))
    assert not from_input(SchemaError("run `outbox migrate`"))
    assert not from_input(psycopg.OperationalError("gone"))
