"""What `outbox doctor` makes of figures, without servers; and its page."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from console.doctor import CHECKS, Severity
from console.doctor.clocks import offset, skewed
from console.doctor.database import ahead, running_out, wraparound
from console.doctor.finding import error, info, warning, worst
from console.doctor.sessions import notified, prepared_one, transaction
from console.doctor.store import evicts, fills, owned, persists, released, usable
from console.doctor.versions import HOLES, KNOWN_UNTIL, holes, judged, release
from outbox.migrations.roles import Grant, grants, roles_sql
from relay.retention import Partition, bounds

OK, INFO, WARNING, ERROR = Severity
PAGE = (Path(__file__).parents[2] / "docs/doctor.md").read_text()


def test_the_page_lists_every_check_with_what_it_looks_at_and_what_to_do() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (.+?) \| (.+) \|$", PAGE, re.MULTILINE)
    assert rows == [(check.name, check.about, check.remedy) for check in CHECKS]


def test_the_page_lists_every_hole_with_its_source() -> None:
    rows = re.findall(r"^\| (\w+) \| (.+?) \| (.+?) \| <(.+)> \|$", PAGE, re.MULTILINE)
    mended = [", ".join(".".join(map(str, (*series, last))) for series, last in hole.mended.items()) for hole in HOLES]
    assert rows == [(hole.product, hole.name, first, hole.source) for hole, first in zip(HOLES, mended, strict=True)]
    assert KNOWN_UNTIL in PAGE


def test_names_of_checks_are_unique_and_remedies_are_commands_or_settings() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(check.about and check.remedy and check.asks for check in CHECKS)


def test_every_check_has_a_test_that_makes_it_fire() -> None:
    tests = Path(__file__).parents[1] / "integration"
    text = "\n".join(file.read_text() for folder in ("doctor", "pooler") for file in (tests / folder).glob("test_*.py"))
    fired = re.findall(r'(?:look\(\w+, |found\[)"([\w-]+)"[)\]](?!\.severity is OK|\.made)', text)
    assert {*fired} == {check.name for check in CHECKS}


def test_what_is_found_is_as_bad_as_its_worst_part() -> None:
    found = worst([info("a"), error("b", "mend b"), warning("c"), error("d", "mend d")], "fine")
    assert (found.severity, found.evidence, found.remedy) == (ERROR, "b; d", "mend b")
    assert worst([], "fine").severity is OK


# Versions -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("product", "version", "names"),
    [
        ("Redis", "7.2.10", ["the releases of July 2026", "CVE-2025-49844"]),
        ("Redis", "7.2.14", ["the releases of July 2026"]),
        ("Redis", "7.2.15", []),
        ("Redis", "8.2.2", ["the releases of July 2026", "CVE-2025-62507"]),
        ("Redis", "8.0.4", ["the releases of July 2026"]),
        ("Redis", "8.10.0", []),
        ("Redis", "7.0.15", ["the releases of July 2026", "CVE-2025-49844"]),
        ("Valkey", "8.1.3", ["CVE-2026-63639", "CVE-2026-23479", "CVE-2025-49844"]),
        ("Valkey", "9.0.4", ["CVE-2026-63639"]),
        ("Valkey", "9.1.1", []),
        ("PostgreSQL", "16.13", ["28 holes that were mended in August 2026", "CVE-2026-6473"]),
        ("PostgreSQL", "16.15", []),
        ("PostgreSQL", "19.0", []),
    ],
)
def test_a_release_has_the_holes_that_were_mended_after_it(product: str, version: str, names: list[str]) -> None:
    assert [hole.name for hole in holes(product, release(version))] == names


def test_a_version_is_judged_with_where_to_go() -> None:
    found = judged("Redis", "7.2.10", (6, 2))
    assert found.severity is WARNING
    assert "the releases of July 2026 and 1 more, unless your distribution mended it" in found.evidence
    assert found.remedy == "upgrade to 7.2.15 or newer"
    assert judged("Redis", "7.0.15", (6, 2)).remedy == "upgrade: no release of 7.0 mends it"
    assert judged("Redis", "6.0.9", (6, 2)).severity is ERROR
    assert judged("Redis", "unheard of", (6, 2)).severity is INFO
    assert judged("PostgreSQL", "18.6 (Debian 18.6-1)", (15,)).severity is OK


def test_valkey_is_judged_by_its_own_version() -> None:
    assert "Valkey 9.1.2" in released({"redis_version": "7.2.4", "valkey_version": "9.1.2"}).evidence
    assert "Redis 7.2.4" in released({"redis_version": "7.2.4"}).evidence


# Everything else ------------------------------------------------------------------------------------------------------


def test_partitions_are_wanted_for_tomorrow_at_once_and_for_the_week_soon() -> None:
    now = datetime(2026, 3, 1, 0, 0, 30, tzinfo=UTC)

    def days(count: int) -> list[Partition]:
        return [
            Partition(table, f"{table}_{n}", *bounds((now + timedelta(days=n)).date()))
            for table in ("event", "delivery")
            for n in range(count)
        ]

    assert ahead(days(8), now).severity is OK
    assert ahead(days(7), now).severity is OK, "the relay makes the last one within a minute of midnight"
    assert ahead(days(6), now).severity is WARNING
    assert ahead(days(1), now).evidence.startswith("event has no partition for 2026-03-02; delivery")
    assert ahead(days(1), now).severity is ERROR


def test_numbers_that_run_out() -> None:
    assert running_out("event_seq", 0.49) is None
    assert [running_out("s", used).severity for used in (0.5, 0.9)] == [WARNING, ERROR]  # type: ignore[union-attr]
    assert wraparound(200_000_000) is None
    assert [wraparound(age).severity for age in (10**9, 1_900_000_000)] == [WARNING, ERROR]  # type: ignore[union-attr]


def test_transactions_are_judged_by_what_they_hold_and_where() -> None:
    row = {"role": "app", "database": "shop", "pid": 7, "program": "psql", "age": 400.0, "here": True, "holds": True}
    assert transaction(row).severity is WARNING
    assert transaction(row | {"age": 4000.0}).severity is ERROR
    assert transaction(row | {"holds": False}).severity is WARNING
    assert transaction(row | {"holds": False, "here": False}).severity is INFO
    left = {"gid": "x", "role": "app", "database": "shop", "age": 400.0, "holds": True}
    assert prepared_one(left).severity is ERROR
    assert prepared_one(left | {"holds": False}).severity is WARNING


def test_notifications_are_judged_by_arrival_and_by_the_queue() -> None:
    assert [notified(*seen).severity for seen in ((True, 0.0), (False, 0.0), (True, 0.6), (True, 0.95))] == [
        OK, WARNING, WARNING, ERROR,
    ]  # fmt: skip


def test_clocks_are_compared_with_each_other_as_exactly_as_answers_allow() -> None:
    assert [offset(10.0, shown, 11.0) for shown in (9.0, 10.5, 14.0)] == [-1.0, 0.0, 3.0]
    assert skewed({"PostgreSQL": 1.5, "Redis": -0.4}).severity is OK
    found = skewed({"PostgreSQL": 1.5, "Redis": -10.0})
    assert (found.severity, found.evidence) == (WARNING, "the clock of PostgreSQL is 11 s ahead of that of Redis")


def test_what_redis_says_of_itself() -> None:
    assert usable({"role": "master", "loading": 0}) is None
    assert usable({"loading": 1}).severity is ERROR  # type: ignore[union-attr]
    assert evicts({"maxmemory_policy": "volatile-lru", "maxmemory": 1}) is None, "streams have no expiry"
    assert fills({"used_memory": 79, "maxmemory": 100}) is None
    assert fills({"used_memory": 80, "maxmemory": 100}).severity is WARNING  # type: ignore[union-attr]
    assert fills({"used_memory": 96, "total_system_memory": 100}).severity is ERROR  # type: ignore[union-attr]
    assert fills({}) is None
    assert persists({"aof_enabled": 1, "aof_last_write_status": "ok"}) is None
    assert persists({"aof_enabled": 1, "aof_last_write_status": "err"}).severity is ERROR  # type: ignore[union-attr]


def test_a_prefix_is_ours_nobody_s_or_another_s() -> None:
    assert [owned("p", "1/a/outbox", holder).severity for holder in (None, b"1/a/outbox", b"2/a/outbox")] == [
        OK, OK, ERROR,
    ]  # fmt: skip


def test_the_grants_that_are_looked_for_are_those_that_are_printed() -> None:
    assert Grant("INSERT", "TABLE", "o.event") in grants("writer", "o")
    assert Grant("SELECT", "ALL TABLES IN SCHEMA", "o") in grants("reader", "o")
    for part in ("writer", "relay", "worker", "reader"):
        printed = roles_sql("o", **{part: "x"})
        assert len(grants(part, "o")) >= printed.count("GRANT ") > 2
