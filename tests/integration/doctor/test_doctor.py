"""`outbox doctor` on real servers: silent on an installation that is well; the examination itself, and the command."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import outbox
import workers
from console import main
from console.doctor import (
    CHECKS,
    Check,
    Finding,
    Verdict,
    examine,
    installation,
)
from console.servers import Redis
from outbox.settings import Settings
from relay.service import Relay
from tests.integration.doctor.conftest import OK, WARNING, Db, leading, look


def test_an_installation_that_is_well_has_no_findings(settings: Settings, start_redis: Callable[..., Redis]) -> None:
    server = start_redis(persistent=True)
    found = asyncio.run(at_work(settings.model_copy(update={"redis_url": SecretStr(server.url)})))
    # Whether the servers under test have holes is not this test's business.
    unwell = [finding for finding in found if finding.severity is not OK and not finding.check.endswith("-version")]
    assert not unwell
    assert [finding.check for finding in found] == [check.name for check in CHECKS]
    assert all(finding.remedy is None for finding in found if finding.severity is OK)


async def at_work(settings: Settings) -> list[Finding]:
    """What is found beside a relay and a worker that have handled an event."""
    app = workers.App()
    handled = asyncio.Event()

    @app.handler("paid")
    async def bill(number: int) -> None:
        handled.set()

    relay = Relay(settings)
    relaying = threading.Thread(target=relay.run, daemon=True)
    relaying.start()
    try:
        async with workers.Worker(app, settings), asyncio.timeout(60):
            with Session(create_engine(settings.sqlalchemy_url())) as session:
                outbox.add(session, "paid", number=1)
                session.commit()
            await handled.wait()
            return await asyncio.to_thread(examine, settings)
    finally:
        relay.stop()
        relaying.join(30)


# The examination itself -----------------------------------------------------------------------------------------------


def test_a_check_that_trips_or_takes_too_long_says_so_and_stops_no_other(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "STATEMENT_TIMEOUT", 0.05)

    def slow(here: installation.Installation) -> Verdict:
        with here.reading() as connection:
            connection.execute("SELECT pg_sleep(60)")
        raise AssertionError

    def wrong(here: installation.Installation) -> Verdict:
        raise KeyError("s3cret")

    last = next(check for check in CHECKS if check.name == "postgresql")
    found = examine(settings, [Check("slow", "", "", slow), Check("wrong", "", "", wrong), last])
    assert [(finding.severity, finding.made) for finding in found] == [(WARNING, False), (WARNING, False), (OK, True)]
    assert found[0].evidence == "not checked: PostgreSQL took longer than a check may"
    assert "s3cret" not in found[1].evidence


def test_a_locked_table_holds_no_check_up(settings: Settings, db: Db) -> None:
    with db.transaction():
        db.execute("LOCK TABLE outbox.handler IN ACCESS EXCLUSIVE MODE")
        handlers, partitions = look(settings, "handlers"), look(settings, "partitions")
    assert (handlers.severity, handlers.made) == (WARNING, False)
    assert partitions.severity is OK


def test_an_examination_changes_nothing(settings: Settings, db: Db) -> None:
    def written() -> Any:
        return db.execute("SELECT pg_current_xact_id_if_assigned(), pg_snapshot_xmax(pg_current_snapshot())").fetchone()

    examine(settings, [check for check in CHECKS if check.name != "schema"])
    before = written()
    examine(settings, [check for check in CHECKS if check.name not in ("schema", "listen")])
    assert written() == before


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def doctor(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("OUTBOX_DATABASE_URL", settings.libpq_url())
    monkeypatch.setenv("OUTBOX_REDIS_URL", settings.redis_url.get_secret_value())
    monkeypatch.setenv("OUTBOX_PREFIX", settings.prefix)

    def run(*arguments: str) -> tuple[int, str, str]:
        return (main.run(["doctor", *arguments]), *capsys.readouterr())

    return run


def test_an_error_exits_1_and_its_absence_0(doctor: Any, database_url: str) -> None:
    status, out, err = doctor()
    assert (status, err) == (1, "")
    assert out.startswith("error")
    assert "→ start `outbox relay`" in out
    assert "checks are fine" in out
    with leading(database_url):
        status, out, err = doctor()
    assert (status, err) == (0, "")
    assert "error" not in out.split()


def test_json_has_every_check(doctor: Any) -> None:
    found = json.loads(doctor("-o", "json")[1])
    assert [finding["check"] for finding in found] == [check.name for check in CHECKS]
    assert set(found[0]) == {"check", "severity", "evidence", "remedy", "made"}
    lines = doctor("--output", "jsonl")[1].splitlines()
    assert [json.loads(line)["check"] for line in lines] == [finding["check"] for finding in found]
    shown = doctor("--all")[1]
    assert all(check.name in shown for check in CHECKS)


@pytest.mark.parametrize(
    "flag", ["--database-url=postgresql://app:s3cret@127.0.0.1:1/x", "--redis-url=redis://u:s3cret@127.0.0.1:1"]
)
def test_a_server_that_is_away_is_one_line_and_a_finding(doctor: Any, flag: str) -> None:
    status, out, err = doctor(flag, "-o", "json")
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("outbox: cannot reach ")
    assert "127.0.0.1:1" in err
    assert "s3cret" not in out + err
    assert json.loads(out)
