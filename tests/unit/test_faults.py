"""The table of faults is true: every test that it names exists, and every row that concerns the relay has one."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from outbox.errors import ConfigurationError
from outbox.failpoints import Armed, Failpoint

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/faults.md").read_text()


def named() -> list[tuple[str, str]]:
    """Every (file, test) on the page; a test stands behind its file, further ones of it behind `::` alone."""
    found: list[tuple[str, str]] = []
    file = ""
    for path, test in re.findall(r"`([\w/]*(?:\.py)?)::(\w+)`", PAGE):
        file = path or file
        found.append((file, test))
    return found


def test_every_test_on_the_page_exists() -> None:
    assert len(named()) > 50
    missing = [
        f"{file}::{test}"
        for file, test in named()
        if not (ROOT / "tests" / file).is_file()
        or not re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE)
    ]
    assert not missing


def test_every_row_has_a_test() -> None:
    rows = dict(re.findall(r"^\| (\w+) \| [^|]+ \| [^|]+ \| (.+) \|$", PAGE, re.MULTILINE))
    wanted = [str(number) for number in range(2, 42) if number != 8] + ["8a", "8b", "27a", "27b"]
    assert not [row for row in wanted if "::" not in rows.get(row, "")]


@pytest.mark.parametrize("text", ["", "a", "a=", "a=hide", "=kill", "a=kill@x", "a=kill@-1"])
def test_a_failpoint_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="OUTBOX_FAILPOINTS"):
        Failpoint.parse(text)


def test_a_failpoint_acts_at_its_turn_only(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[signal.Signals] = []
    monkeypatch.setattr("os.kill", lambda pid, number: sent.append(number))
    armed = Armed([Failpoint.parse("a=kill@2"), Failpoint.parse(" b=stop")])
    for place in ("a", "c", "b", "a", "a", "b"):
        armed.reach(place)
    assert [number.name for number in sent] == ["SIGSTOP", "SIGKILL"]
