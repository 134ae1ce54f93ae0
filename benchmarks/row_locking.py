"""The usual relay, to compare with: lock some rows, pipeline their XADDs, delete the rows, commit.

It is written as well as its kind allows: the pipeline is one round trip without MULTI, JSON is fetched as text and
never parsed, both statements are prepared, and only the commit waits for the disk. `python -m benchmarks.row_locking
BATCH` empties the table and ends.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import psycopg
import redis

from outbox.names import stream_key

TAKE = """
SELECT id, event_id::text, name, key, payload::text, headers::text,
       (extract(epoch FROM created_at) * 1000000)::bigint::text
  FROM row_locking.event ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED
"""
DELETE = "DELETE FROM row_locking.event WHERE id = ANY(%s)"


def relay(connection: psycopg.Connection, client: redis.Redis, batch: int) -> None:
    """Publish all rows, `batch` in a transaction."""
    cursor = connection.cursor(binary=True)
    streams: dict[str, str] = {}
    while True:
        rows = cursor.execute(TAKE, [batch], prepare=True).fetchall()
        if not rows:
            connection.commit()
            return
        pipeline = client.pipeline(transaction=False)
        for _, event_id, name, key, payload, headers, at in rows:
            stream = streams.get(name) or streams.setdefault(name, stream_key("outbox", name))
            entry: dict[Any, Any] = {
                "id": event_id,
                "name": name,
                "key": key or "",
                "payload": payload,
                "headers": headers or "",
                "at": at,
            }
            pipeline.xadd(stream, entry)
        pipeline.execute()
        cursor.execute(DELETE, [[row[0] for row in rows]], prepare=True)
        connection.commit()


def main(batch: int) -> None:
    with (
        psycopg.connect(os.environ["OUTBOX_DATABASE_URL"]) as connection,
        redis.Redis.from_url(os.environ["OUTBOX_REDIS_URL"]) as client,
    ):
        relay(connection, client, batch)


if __name__ == "__main__":
    main(int(sys.argv[1]))
