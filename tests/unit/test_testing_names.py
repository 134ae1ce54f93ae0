"""`outbox.testing` is where users look first: it gives what is in `outbox_testing`, too, and loads it only then."""

from __future__ import annotations

import subprocess
import sys

import pytest

import outbox.testing
import outbox_testing


@pytest.mark.parametrize("name", outbox_testing.__all__)
def test_every_helper_is_found_in_outbox_testing_by_either_name(name: str) -> None:
    assert getattr(outbox.testing, name) is getattr(outbox_testing, name)


def test_a_name_that_is_in_neither_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        outbox.testing.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_asking_what_was_added_loads_no_workers() -> None:
    code = "import sys, outbox.testing; outbox.testing.added; sys.exit('workers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
