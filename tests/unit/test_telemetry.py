"""Names of log lines are stable and documented; logging leaves the rest of the process alone."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from outbox import telemetry

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs/telemetry.md").read_text()
LEVELS = ("debug", "info", "warning", "error", "critical", "exception")
ROOMS = ("outbox", "relay", "workers", "console", "outbox_testing")


def lines() -> Iterator[tuple[str, ast.Call]]:
    """Every call that writes a line of log, with its place."""
    for room in ROOMS:
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
                    of = ast.unparse(node.func.value)
                    if re.search(r"(\blog|_log|get_logger\(\))$", of):
                        yield f"{file.relative_to(ROOT)}:{node.lineno}", node


def documented() -> dict[str, set[str]]:
    rows = re.findall(r"^\| (`[a-z_.`, ]+`) \| ([a-z, ]+) \| .+ \|$", DOCUMENT, re.MULTILINE)
    return {
        name: set(levels.split(", ")) for names, levels in rows for name in re.findall(r"`([a-z]+\.[a-z_.]+)`", names)
    }


def test_every_line_has_a_literal_dotted_name_and_the_document_has_them_all_with_their_levels() -> None:
    found: dict[str, set[str]] = {}
    for place, call in lines():
        name = call.args[0]
        assert isinstance(name, ast.Constant), place
        assert re.fullmatch(r"[a-z]+(\.[a-z_]+)+", name.value), place
        assert isinstance(call.func, ast.Attribute)
        found.setdefault(name.value, set()).add(call.func.attr)
    assert len(found) > 50
    assert documented() == found


def test_no_line_above_debug_has_a_payload() -> None:
    for place, call in lines():
        assert isinstance(call.func, ast.Attribute)
        if call.func.attr != "debug":
            assert not {"payload", "headers", "payload_json"} & {keyword.arg for keyword in call.keywords}, place


def test_nothing_of_ours_sets_up_the_logging_of_the_process() -> None:
    forbidden = {"basicConfig", "dictConfig", "fileConfig", "addHandler", "setLevel", "captureWarnings"}
    for room in ROOMS:
        for file in (ROOT / room).rglob("*.py"):
            names = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
            assert not forbidden & names, file


class Terminal(io.StringIO):
    """Stands for standard error."""

    tty = True

    def isatty(self) -> bool:
        return self.tty

    def line(self, level: str = "info", form: str = "auto") -> str:
        """What one line of log looks like when logging is set up like this."""
        with (
            contextlib.redirect_stderr(self),
            structlog.contextvars.bound_contextvars(event_id="1", correlation_id="req-7"),
        ):
            telemetry.configure(level, form)
            structlog.get_logger().bind(handler="h").warning("some.name", attempt=2)
        return self.getvalue()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """What is configured meanwhile is forgotten."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    # Before it changes: what is patched is put back to what it was then.
    monkeypatch.setattr(telemetry, "_shown", logging.INFO)
    before = structlog.get_config()
    yield Terminal()
    structlog.configure(**before)


def test_lines_are_json_where_there_is_no_terminal(terminal: Terminal) -> None:
    terminal.tty = False
    line = json.loads(terminal.line())
    assert line.pop("timestamp")
    facts = {"handler": "h", "event_id": "1", "correlation_id": "req-7", "attempt": 2}
    assert line == facts | {"event": "some.name", "level": "warning"}


def test_lines_go_to_the_stderr_of_the_moment_and_one_that_is_closed_stops_no_work(terminal: Terminal) -> None:
    log = structlog.get_logger()
    assert "some.name" in terminal.line()
    with contextlib.redirect_stderr(terminal):
        log.warning("first.name")
    later = io.StringIO()
    with contextlib.redirect_stderr(later):
        log.warning("second.name")
    assert "first.name" in terminal.getvalue()
    assert "second.name" in later.getvalue()
    later.close()
    with contextlib.redirect_stderr(later):
        log.warning("third.name")


def test_lines_are_coloured_on_a_terminal(terminal: Terminal) -> None:
    assert "\x1b[" in terminal.line()


def test_no_color_is_obeyed(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    line = terminal.line()
    assert "some.name" in line
    assert "\x1b[" not in line


@pytest.mark.parametrize("form", ["console", "logfmt", "json"])
def test_the_root_logger_is_left_alone(terminal: Terminal, form: str) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers), list(root.filters), root.disabled)
    assert terminal.line("debug", form)
    assert (root.level, list(root.handlers), list(root.filters), root.disabled) == before
