"""The tests in docs/testing.md are run as they stand there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from console.demo.stage import examples_folder

pytest_plugins = ["pytester"]

DOCUMENT = (Path(__file__).parents[3] / "docs/testing.md").read_text()


def test_the_tests_of_the_documentation_pass(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    run_pytest: Callable[..., pytest.RunResult],
    postgres_url: str,
    outbox_redis_url: str,
) -> None:
    for name in list(os.environ):
        if name.startswith(("OUTBOX_", "PYTEST_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OUTBOX_TEST_DATABASE_URL", postgres_url)
    monkeypatch.setenv("OUTBOX_TEST_REDIS_URL", outbox_redis_url)
    monkeypatch.setenv("PYTHONPATH", str(examples_folder()))
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    files = {block.split("\n", 1)[0].removeprefix("# "): block for block in blocks}
    assert all(name.endswith(".py") for name in files)
    for name, block in files.items():
        (pytester.path / name).write_text(block)
    tests = len(re.findall(r"^async def test_", DOCUMENT, re.MULTILINE))
    result = run_pytest()
    result.assert_outcomes(passed=tests)
    assert tests >= 5
