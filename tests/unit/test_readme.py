"""The documents say only what exists: commands, flags, settings, names and paths. Their programs are run by
tests/integration/test_readme.py."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import typer

import outbox
import outbox.schema
import workers
from console.program import app
from outbox.database import redacted
from outbox.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING", "CHANGELOG")]
    + [ROOT / "examples/README.md", *(ROOT / "docs").rglob("*.md")]
)
README = (ROOT / "README.md").read_text()
every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def code_spans(text: str) -> list[str]:
    """What stands between backticks in running text."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def command_lines(text: str) -> Iterator[str]:
    """Every `outbox …` command, in blocks and in running text, that is more than the program's name."""
    indented = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()] + indented + code_spans(text)
    for line in lines:
        if re.match(r"outbox [a-z-]", line):
            yield line.partition("#")[0].rstrip(" &")


NEEDED = {
    "worker": ["shop.tasks:app"],
    "dev": ["shop.tasks:app"],
    "pause": ["relay"],
    "resume": ["relay"],
    "discard": ["--reason", "x"],
    "purge": ["--key", "k", "--reason", "x"],
    "forget": ["h"],
    "rename": ["h", "g"],
    "cancel": [str(UUID(int=7))],
}
"""What a command cannot do without."""


def parse(line: str) -> dict[str, Any]:
    """What our command line makes of a command; raises when it refuses it."""
    group: Any = typer.main.get_command(app)
    arguments = shlex.split(line)[1:]
    if len(arguments) == 1:
        # A command that is only named.
        arguments += NEEDED.get(arguments[0], [])
    context = group.make_context("outbox", list(arguments))
    if arguments[0].startswith("-"):
        return {}
    name, command, rest = group.resolve_command(context, list(arguments))
    parameters: dict[str, Any] = command.make_context(name, rest, parent=context).params
    return parameters


@every_document
def test_every_command_exists_and_takes_its_flags(document: Path) -> None:
    for line in command_lines(document.read_text()):
        parse(line)


def test_the_readme_shows_every_command_and_an_unknown_one_would_be_noticed() -> None:
    group: Any = typer.main.get_command(app)
    shown = {line.split()[1] for line in command_lines(README)}
    assert set(group.commands) <= shown
    with pytest.raises(Exception, match="No such"):
        parse("outbox relay --verbose")


def test_every_flag_of_a_commands_row_belongs_to_it() -> None:
    group: Any = typer.main.get_command(app)
    rows = re.findall(r"^\| `outbox ([a-z]+)[^`]*` \| (.+) \|$", README, re.MULTILINE)
    assert {name for name, _ in rows} == set(group.commands)
    for name, said in rows:
        known = {f for parameter in group.commands[name].params for f in [*parameter.opts, *parameter.secondary_opts]}
        assert set(re.findall(r"--[a-z-]+", said)) <= known, name


def settings_rows() -> dict[str, tuple[str, str]]:
    """Variable → default and flag, as the README's table has them."""
    rows = re.findall(r"^\| `(OUTBOX_\w+)` \| (.+?) \| .+ \| (.*?) ?\|$", README, re.MULTILINE)
    return {name: (default, flag) for name, default, flag in rows}


def variable(field: str) -> str:
    return "OUTBOX_SCHEMA" if field == "schema_name" else f"OUTBOX_{field.upper()}"


def test_the_settings_table_has_every_setting_with_its_default_and_flag() -> None:
    rows = settings_rows()
    assert list(rows) == [variable(field) for field in Settings.model_fields]
    group: Any = typer.main.get_command(app)
    flags = {flag for command in group.commands.values() for parameter in command.params for flag in parameter.opts}
    for field, about in Settings.model_fields.items():
        default, flag = rows[variable(field)]
        secret = getattr(about.default, "get_secret_value", None)
        value = redacted(secret()) if secret else about.default
        if isinstance(value, timedelta):
            value = f"{value.days}d"
        assert default == ("(none)" if value is None else f"`{value}`"), field
        assert flag == "" or flag.strip("`") in flags, field


@every_document
def test_every_variable_is_read_somewhere(document: Path) -> None:
    ours = {variable(field) for field in Settings.model_fields}
    fixtures = "".join(file.read_text() for file in (ROOT / "tests").rglob("conftest.py"))
    tests = set(re.findall(r"OUTBOX_TEST_[A-Z_]+", fixtures))
    tests |= set(re.findall(r"OUTBOX_FAILPOINTS", (ROOT / "outbox/failpoints.py").read_text()))
    assert set(re.findall(r"\bOUTBOX_[A-Z_]+[A-Z]\b", document.read_text())) <= ours | tests


@every_document
def test_every_public_name_exists(document: Path) -> None:
    text = " ".join([*code_spans(document.read_text()), *blocks(document.read_text(), "python")])
    for package, name in re.findall(r"\b(outbox|workers)\.([A-Za-z_]\w*)", text):
        if f"{package}.{name}" in ("outbox.event", "outbox.handler", "outbox.audit", "outbox.tick"):
            # Tables of the PostgreSQL schema.
            assert f"{outbox.metadata.schema}.{name}" in outbox.metadata.tables
        else:
            public = hasattr({"outbox": outbox, "workers": workers}[package], name)
            assert public or importlib.util.find_spec(f"{package}.{name}"), f"{package}.{name}"


@every_document
def test_every_path_exists(document: Path) -> None:
    made_by_the_reader = set(re.findall(r"^# (\S+\.py)$", README, re.MULTILINE))
    for span in code_spans(document.read_text()):
        if (
            re.fullmatch(r"[\w.-]+(/[\w.-]*)+|[A-Z]+\.md", span)
            and span not in made_by_the_reader
            and "NNNN" not in span
        ):
            near = (ROOT / span, document.parent / span)
            assert any(place.exists() for place in near), f"{span} in {document.name}"


@every_document
def test_every_link_leads_somewhere(document: Path) -> None:
    text = document.read_text()
    anchors = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in re.findall(r"^#+ (.+)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif "://" not in target:
            assert (document.parent / target.partition("#")[0]).exists(), target


@every_document
def test_every_program_is_python(document: Path) -> None:
    for block in blocks(document.read_text(), "python"):
        ast.parse(block)


def test_the_extras_are_those_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"^\| `([a-z]+)` \| .+ \|$", README, re.MULTILINE)) >= set(extras)
    for given in re.findall(r"transactional-outbox\[([a-z,]+)\]", README):
        assert set(given.split(",")) <= set(extras)


def test_every_make_target_exists() -> None:
    made = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        assert set(re.findall(r"`make ([a-z]+)", document.read_text())) <= made


def test_the_bug_is_told_in_six_lines_and_the_whole_story_on_one_screen() -> None:
    first, second = blocks(README, "python")[:2]
    assert len(first.splitlines()) == 6
    assert "queue.enqueue" in first
    assert "outbox.add" in second
    story = README.partition("**See it**")[0].splitlines()
    assert len(story) <= 60
    assert re.findall(r"^\*\*(\w+)\*\*", "\n".join(story), re.MULTILINE) == ["Define", "Run", "Replay"]


def test_the_page_on_benchmarks_names_flags_and_figures_that_exist() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text()
    source = "".join(file.read_text() for file in (ROOT / "benchmarks").glob("*.py"))
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page)):
        assert f'"{flag}"' in source, flag
    for figure in re.findall(r"`(\w+_(?:per_s|ms|mib)|ratio_\w+)`", page):
        assert f'"{figure}"' in source, figure
    for module in re.findall(r"python -m benchmarks\.(\w+)", page):
        assert (ROOT / "benchmarks" / f"{module}.py").exists()
