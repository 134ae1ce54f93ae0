"""The smallest story of a finding: the seed, the faults near the event, and the event's path."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.chaos.checker import Finding
from tests.chaos.cluster import Cluster
from tests.chaos.facts import Facts
from tests.chaos.history import Entry
from tests.chaos.schedule import Schedule

NEAR = 3.0
"""Seconds before and after an event's path within which a fault is near."""

PATH = (
    ("event", "SELECT seq, xid::text, name, key, created_at::text FROM outbox.event WHERE id = %s"),
    (
        "tick",
        "SELECT t.id, t.snapshot::text FROM outbox.tick AS t, outbox.event AS e"
        " WHERE e.id = %s AND pg_visible_in_snapshot(e.xid, t.snapshot) ORDER BY t.id LIMIT 1",
    ),
    (
        "delivery",
        "SELECT handler, state, attempts, crashes, lease IS NOT NULL, due_at::text, updated_at::text, left(error, 200)"
        " FROM outbox.delivery WHERE event_id = %s ORDER BY updated_at",
    ),
    ("effect", "SELECT handler, place, at::text, follow::text FROM effect WHERE event_id = %s ORDER BY place"),
    ("letter", "SELECT handler, died_at::text, left(error, 300) FROM outbox.dead_letter WHERE event_id = %s"),
)
STATE = (
    ("relay", "SELECT tick, seq, leader, heartbeat::text FROM outbox.relay"),
    ("handler", "SELECT name, attached, done_tick, done_seq, fed_tick, fed_seq, last_seen::text FROM outbox.handler"),
    ("stream", "SELECT name, tick, seq FROM outbox.stream"),
    (
        "session",
        "SELECT pid, pg_blocking_pids(pid), application_name, state, wait_event, (now() - state_change)::text,"
        " left(query, 80) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
    ),
)


def tell(schedule: Schedule, findings: list[Finding], facts: Facts, entries: list[Entry], cluster: Cluster) -> str:
    """The story of the first finding, and where everything stands if something is stuck."""
    began = entries[0]["t"] if entries else 0.0
    first = findings[0]
    config = {
        name: value for name, value in schedule.to_json().items() if name not in ("faults", "seed", "length") and value
    }
    lines = [
        f"seed {schedule.seed}, {schedule.length:g} s: {len(findings)} findings, of which the first: {first}",
        f"with {config}",
    ]
    path = [entry for entry in entries if first.event and first.event in str(entry)]
    if first.event in facts.said:
        tx = facts.said[first.event][1].tx
        path += [entry for entry in entries if entry.get("tx") == tx and entry not in path]
    low = min((entry["t"] for entry in path), default=began) - NEAR
    high = max((entry["t"] for entry in path), default=float("inf")) + NEAR
    shown = [entry for entry in entries if entry in path or (entry["who"] == "harness" and low <= entry["t"] <= high)]
    lines += [_line(entry, began) for entry in shown[:200]]
    lines += [
        f"  on {each.stream!r} at {each.tick}-{each.seq}" for each in facts.sightings if each.event == first.event
    ]
    try:
        with cluster.sql() as sql:
            if first.event:
                lines += _rows(sql, PATH, [first.event])
            if any(finding.kind in ("stuck", "lost") for finding in findings):
                lines += _rows(sql, STATE, [])
                lines += _streams(cluster)
    except psycopg.Error as error:
        lines.append(f"  the database does not answer: {error}")
    return "\n".join(lines)


def _line(entry: Entry, began: float) -> str:
    facts = {name: value for name, value in entry.items() if name not in ("t", "who", "pid", "what")}
    return f"  {entry['t'] - began:7.3f}  {entry['who']}:{entry['pid']} {entry['what']} " + ", ".join(
        f"{name}={_short(value)}" for name, value in facts.items() if value not in ("", None)
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 400 else text[:400] + "…"


def _rows(sql: psycopg.Connection, statements: tuple[tuple[str, str], ...], parameters: list[Any]) -> list[str]:
    return [
        f"  {title}: " + " | ".join(_short(value) for value in row)
        for title, statement in statements
        for row in sql.execute(statement.encode(), parameters).fetchall()
    ]


def _streams(cluster: Cluster) -> list[str]:
    lines = []
    with cluster.redis() as client:
        for key in sorted(client.keys("outbox:{*")):
            facts = client.xinfo_stream(key)
            lines.append(f"  {key.decode()}: {facts['length']} entries, last {facts['last-generated-id'].decode()}")
            for group in client.xinfo_groups(key):
                lines.append(
                    f"    {group['name'].decode()}: delivered {group['last-delivered-id'].decode()},"
                    f" pending {group['pending']}"
                )
    return lines
