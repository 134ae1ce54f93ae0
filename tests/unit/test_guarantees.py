"""The page of guarantees is true: it has every promise of the README, and every test that holds one exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/guarantees.md").read_text()
README = (ROOT / "README.md").read_text()
PROMISES = dict(re.findall(r"^## (I\d+ [\w ]+)\n(.+?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL))


def test_every_promise_of_the_readme_is_explained_in_its_order() -> None:
    assert list(PROMISES) == re.findall(r"^\| (I\d+ [\w ]+?) \|", README, re.MULTILINE)


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_says_where_it_ends_and_which_tests_hold_it(promise: str) -> None:
    _, limits, held = re.split(r"^\*(?:Limits\.|Held by)\* ", PROMISES[promise], flags=re.MULTILINE)
    assert limits
    tests = re.findall(r"`(tests/[^`]+)`", held)
    assert tests
    assert not [test for test in tests if not (ROOT / test).is_file()]


def test_every_path_on_the_page_exists() -> None:
    paths = re.findall(r"`((?:\w+/)+[\w.]*|\w+\.md)`", PAGE)
    assert not [path for path in paths if not (ROOT / path).exists()]
