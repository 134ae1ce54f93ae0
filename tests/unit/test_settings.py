"""Where settings come from: argument > environment, and only variables of ours."""

from __future__ import annotations

import pytest

from outbox.settings import Settings, load


def settings(**given: str) -> Settings:
    return load(**given, _env_file=None)


def test_every_setting_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_SCHEMA", "shop_outbox")
    monkeypatch.setenv("OUTBOX_PREFIX", "shop")
    found = settings()
    assert (found.schema_name, found.prefix) == ("shop_outbox", "shop")


def test_an_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_SCHEMA", "shop_outbox")
    assert settings(schema_name="other").schema_name == "other"


def test_variables_of_other_programs_are_not_taken_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUTBOX_SCHEMA", raising=False)
    for name in ("SCHEMA_NAME", "PREFIX", "DATABASE_URL", "REDIS_URL", "LOG_LEVEL"):
        monkeypatch.setenv(name, "theirs")
    found = settings()
    assert (found.schema_name, found.prefix, found.database_url, found.log_level) == ("outbox", "outbox", None, "info")
