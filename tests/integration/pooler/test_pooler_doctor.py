"""What `outbox doctor` finds behind poolers."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from console.doctor import CHECKS, Finding, Severity, examine, sessions
from outbox.settings import Settings


def look(settings: Settings, name: str) -> Finding:
    [found] = examine(settings, [check for check in CHECKS if check.name == name])
    return found


def test_a_pooler_before_the_relay_is_found(pooled: Settings) -> None:
    assert look(pooled, "pooler").severity is Severity.OK, "only the others go through it"
    found = look(pooled.model_copy(update={"relay_database_url": None}), "pooler")
    assert found.severity is Severity.WARNING
    assert "OUTBOX_RELAY_DATABASE_URL" in str(found.remedy)


def test_notifications_that_do_not_arrive_are_found(
    settings: Settings, deaf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert look(settings, "listen").severity is Severity.OK
    monkeypatch.setattr(sessions, "NOTIFIED_WITHIN", 0.3)
    found = look(settings.model_copy(update={"relay_database_url": SecretStr(deaf.url)}), "listen")
    assert found.severity is Severity.WARNING
    assert "did not arrive" in found.evidence


def test_checks_are_made_through_a_pooler(pooled: Settings) -> None:
    found = {finding.check: finding for finding in examine(pooled)}
    assert all(finding.made for finding in found.values())
