"""Values that only a server can refuse, and a Redis that is away, for every command that takes them."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import typer

from console import main
from console.program import app

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
ID = "0197b6b0-5d3e-7c2a-9f00-3d2b6c1a7e55"
NEEDED = {
    "replay": ["--all", "--dry-run"],
    "discard": ["--all", "--reason", "x", "--dry-run"],
    "cancel": [ID, "--dry-run"],
    "purge": ["--key", "k", "--reason", "x", "--dry-run"],
    "forget": ["send", "--dry-run"],
    "rename": ["send", "bill", "--dry-run"],
}
FREE = ("--name", "--handler", "--key", "--error", "--group")
"""Flags that take any text."""
NEED_REDIS = ("forget", "rename", "purge", "doctor")
"""The others go on without it, or wait for it."""


@pytest.fixture(autouse=True)
def here(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_DATABASE_URL", database_url)
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute("INSERT INTO outbox.handler (name, event_name) VALUES ('send', 'paid')")


@pytest.mark.parametrize("name", ["events", "dead", "replay", "discard", "purge", "cancel"])
def test_text_and_numbers_that_postgresql_cannot_hold_are_wrong_input(
    name: str, outbox_redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUTBOX_REDIS_URL", outbox_redis_url)
    known = {flag for parameter in COMMANDS[name].params for flag in parameter.opts}
    unfit = ("a\0b", "\udcff")
    tried = [
        *((flag, text) for flag in FREE for text in unfit),
        ("--limit", "9" * 30),
        ("--look-at", "9" * 30),
        ("--rate", "inf"),
        ("--rate", "1e400"),
    ]
    deep = '{"a":' * 5000 + "1" + "}" * 5000
    tried += [
        ("--edit", deep),
        ("--edit", f"payload.{'.'.join('a' * 3000)}=1"),
        ("--edit", f"payload.a={'[' * 100_000}"),
    ]
    begin = [word for word in NEEDED.get(name, []) if word != "--all"]
    for flag, value in tried:
        if flag not in known:
            continue
        everything = [] if flag in FREE or name in ("events", "dead", "purge", "cancel") else ["--all"]
        status = main.run([name, *begin, *everything, flag, value])
        out, err = capsys.readouterr()
        # A limit that nothing reaches is none.
        assert status == 2 or (status == 0 and flag == "--limit"), (flag, out, err)
        assert "Traceback" not in err
        assert err.count("\n") <= 1 or status == 0, err
        assert len(err) < 400


@pytest.mark.parametrize("name", NEED_REDIS)
def test_a_redis_that_is_away_is_one_line_that_says_where_and_status_1(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main.run([name, *NEEDED.get(name, []), "--redis-url", "redis://app:s3cret@127.0.0.1:1/0"])
    out, err = capsys.readouterr()
    assert (status, err.count("\n")) == (1, 1), err
    assert err.startswith("outbox: cannot reach Redis: redis://app:***@127.0.0.1:1/0 does not answer")
    assert "s3cret" not in out + err
