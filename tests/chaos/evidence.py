"""The evidence: what database, Redis and histories say at the end of a run, as facts for the checker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
import redis

from outbox.names import catch_up_key, stream_key
from tests.chaos import facts, tasks
from tests.chaos.checker import Finding
from tests.chaos.cluster import Cluster
from tests.chaos.facts import Delivery, Effect, Facts, Handler, Row, Sighting
from tests.chaos.history import Entry
from tests.chaos.story import short
from tests.chaos.tasks import sha

CRASHED = "worker.crashed"
"""What a supervisor logs of a worker that ended by itself."""

LATE = ("audit",)
"""Handlers that are not the first of their event's."""

OWED = """
SELECT h.name, e.name, count(*)
  FROM outbox.event AS e JOIN outbox.handler AS h ON h.event_name = e.name
  LEFT JOIN outbox.delivery AS d
         ON d.event_id = e.id AND d.event_created_at = e.created_at AND d.handler = h.name
 WHERE (h.name <> ALL (%s) AND d.state IS NULL) OR d.state = 'retrying'
 GROUP BY 1, 2
"""
"""Deliveries without an end. Of handlers that began later only those that were begun."""

BEHIND = """
SELECT h.name, h.attached, (h.done_tick, h.done_seq) >= (r.tick, r.seq)
  FROM outbox.handler AS h CROSS JOIN outbox.relay AS r
 WHERE NOT h.attached OR (h.done_tick, h.done_seq) < (r.tick, r.seq) OR h.done_tick IS NULL
"""
"""Handlers that are not where the relay is."""


def unsettled(cluster: Cluster) -> list[str]:
    """What has not come to rest: nothing when all is done, attached, acknowledged and proved."""
    try:
        with cluster.sql() as sql, cluster.redis() as client:
            found = [
                f"{count} of {event} without an end at {name}" for name, event, count in sql.execute(OWED, [list(LATE)])
            ]
            for name, attached, _ in sql.execute(BEHIND).fetchall():
                found.append(f"{name} is " + ("attached and not done" if attached else "detached"))
            for name, event in sql.execute("SELECT name, event_name FROM outbox.handler").fetchall():
                for key in (stream_key("outbox", event), catch_up_key("outbox", event, name)):
                    if pending := _pending(client, key, name):
                        found.append(f"{pending} pending at {name} on {key}")
            return found
    except (psycopg.OperationalError, redis.RedisError) as error:
        return [f"a server does not answer: {type(error).__name__}: {error}"]


def _pending(client: redis.Redis, key: str, group: str) -> int:
    try:
        return int(client.xpending(key, group)["pending"])
    except redis.ResponseError:
        return 0


def gather(cluster: Cluster, entries: list[Entry], sightings: tuple[Sighting, ...], left: list[str]) -> Facts:
    """All facts of a run that is over."""
    with cluster.sql() as sql:
        sql.execute("SET timezone = 'UTC'")

        def rows(statement: str) -> list[tuple[Any, ...]]:
            return sql.execute(statement.encode()).fetchall()

        events = rows(
            "SELECT id::text, name, key, seq, payload::text, extract(epoch FROM created_at)::float FROM outbox.event"
        )
        return Facts(
            transactions=facts.transactions(entries),
            business=frozenset(row[0] for row in rows("SELECT id::text FROM business")),
            events=tuple(Row(id, name, key, seq, sha(payload), at) for id, name, key, seq, payload, at in events),
            doomed=frozenset(row[0] for row in events if '"doomed"' in row[4]),
            handlers=tuple(
                Handler(name, event_name, registered, first=name not in LATE)
                for name, event_name, registered in rows(
                    "SELECT name, event_name, extract(epoch FROM registered_at)::float FROM outbox.handler"
                )
            ),
            deliveries=tuple(
                Delivery(*row)
                for row in rows(
                    "SELECT d.event_id::text, d.handler, d.state, d.crashes, l.error, d.result #>> '{}'"
                    " FROM outbox.delivery AS d LEFT JOIN outbox.dead_letter AS l"
                    " ON l.event_id = d.event_id AND l.handler = d.handler"
                )
            ),
            effects=tuple(
                Effect(*row) for row in rows("SELECT event_id::text, handler, sha, follow::text FROM effect")
            ),
            runs=facts.runs([entry for entry in entries if "handler" in entry]),
            sightings=sightings,
            crashed=cluster.crashes > 0,
            unsettled=tuple(left),
            fallen=(
                *cluster.fallen,
                *supervised_crashes(cluster.histories, cluster.schedule.supervised),
                *(entry["error"] for entry in entries if entry["what"] == "broken"),
            ),
            transactional=tasks.TRANSACTIONAL,
            plain=tasks.PLAIN,
            once=tasks.ONCE,
            answering=tasks.ANSWERING,
        )


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


def supervised_crashes(folder: Path, names: Sequence[str]) -> list[str]:
    """What these programs, supervisors, logged in this folder of workers that ended by themselves."""
    logs = (folder / f"{name}.log" for name in names)
    return [line for log in logs if log.exists() for line in log.read_text().splitlines() if CRASHED in line]


def places(cluster: Cluster, findings: list[Finding]) -> list[str]:
    """What the servers hold about the first finding's event, and where everything stands if something is stuck."""
    lines: list[str] = []
    event = findings[0].event
    try:
        with cluster.sql() as sql:
            if event:
                lines += _rows(sql, PATH, [event])
            if any(finding.kind in ("stuck", "lost") for finding in findings):
                lines += _rows(sql, STATE, [])
                lines += _streams(cluster)
    except psycopg.Error as error:
        lines.append(f"  the database does not answer: {error}")
    return lines


def _rows(sql: psycopg.Connection, statements: tuple[tuple[str, str], ...], parameters: list[Any]) -> list[str]:
    return [
        f"  {title}: " + " | ".join(short(value) for value in row)
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
