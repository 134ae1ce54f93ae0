"""The evidence: what database, Redis and histories say at the end of a run, as facts for the checker."""

from __future__ import annotations

from typing import Any

import psycopg
import redis

from outbox.names import catch_up_key, stream_key
from tests.chaos import facts, tasks
from tests.chaos.cluster import Cluster
from tests.chaos.facts import Delivery, Effect, Facts, Handler, Row, Sighting
from tests.chaos.history import Entry
from tests.chaos.tasks import sha

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
                    "SELECT d.event_id::text, d.handler, d.state, d.crashes, l.error FROM outbox.delivery AS d"
                    " LEFT JOIN outbox.dead_letter AS l ON l.event_id = d.event_id AND l.handler = d.handler"
                )
            ),
            effects=tuple(
                Effect(*row) for row in rows("SELECT event_id::text, handler, sha, follow::text FROM effect")
            ),
            runs=facts.runs([entry for entry in entries if entry.get("handler") in tasks.PLAIN | tasks.ONCE]),
            sightings=sightings,
            crashed=cluster.crashes > 0,
            unsettled=tuple(left),
            fallen=(*cluster.fallen, *(entry["error"] for entry in entries if entry["what"] == "broken")),
            transactional=tasks.TRANSACTIONAL,
            plain=tasks.PLAIN,
            once=tasks.ONCE,
        )
