"""The map is complete and true: every module is on it, every path on it exists, every promise has its place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAP = (ROOT / "ARCHITECTURE.md").read_text()
README = (ROOT / "README.md").read_text()
PACKAGES = ("outbox", "relay", "workers", "console", "outbox_testing")
FOLDERS = sorted({file.parent for package in PACKAGES for file in (ROOT / package).rglob("*.py")})


def section(folder: Path) -> str:
    """The part of the map about a folder: from where it is headed to the next heading."""
    name = str(folder.relative_to(ROOT))
    start = f"### {name}/" if folder.parent == ROOT else f"`{name}/`"
    place = re.search(rf"^{re.escape(start)}", MAP, re.MULTILINE)
    assert place, f"{name}/ is not on the map"
    return re.split(r"^(?:#|`[\w/]+/`)", MAP[place.end() :], maxsplit=1, flags=re.MULTILINE)[0]


def modules(folder: Path) -> set[str]:
    return {file.stem for file in folder.glob("*.py")} - {"__init__", "__main__"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_every_module_is_on_the_map_where_it_belongs(folder: Path) -> None:
    missing = {name for name in modules(folder) if f"`{name}`" not in section(folder)}
    assert not missing


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_every_row_of_the_map_is_a_module(folder: Path) -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", section(folder), re.MULTILINE)) <= modules(folder)


def test_every_path_on_the_map_exists() -> None:
    paths = re.findall(r"`((?:\w+/)+[\w.]*|[\w]+\.(?:md|toml))`", MAP)
    assert len(paths) > 50
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_every_promise_of_the_readme_is_kept_somewhere() -> None:
    promised = re.findall(r"^\| (I\d+ [\w ]+?) \|", README, re.MULTILINE)
    assert len(promised) == 12
    kept = dict(re.findall(r"^\| (I\d+ [\w ]+?) \| .+ \| (.+) \|$", MAP, re.MULTILINE))
    assert list(kept) == promised
    for promise, places in kept.items():
        assert re.findall(r"`\w+/\S+`", places), promise


def test_where_an_event_is_published_is_said_at_the_top() -> None:
    assert "an event published" in "\n".join(MAP.splitlines()[:15])


def test_decisions_are_numbered_without_gaps_and_have_the_same_parts() -> None:
    records = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert [int(record.name[:3]) for record in records] == list(range(1, len(records) + 1))
    for record in records:
        lines = record.read_text().splitlines()
        assert lines[0].startswith(f"# {record.name[:3]} · ")
        parts = [line[3:] for line in lines if line.startswith("## ")]
        assert parts == ["Context", "Decision", "Consequences", "Measured", "Revisit when"], record.name
        assert len(lines) <= 45, f"{record.name} is longer than a page should be"
