"""Writes events at a steady rate until it is stopped: `python -m benchmarks.steady NAME PER_SECOND`.

Small transactions at fixed moments, however long the one before took. Each payload tells its number and when its
transaction began, on the machine's monotonic clock; so the INSERT and the whole COMMIT count.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import psycopg

ROWS_PER_TRANSACTION = 20

INSERT = """\
INSERT INTO outbox.event (name, payload)
SELECT %s, format('{"number": %%s, "sent_ns": %%s, "note": "books, for the neighbours"}', n, %s::bigint)::json
  FROM generate_series(%s::bigint, %s) AS n"""


def main(name: str, per_second: float) -> None:
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: ended.set())
    with psycopg.connect(os.environ["OUTBOX_DATABASE_URL"], autocommit=True) as connection:
        begin = time.monotonic()
        number = 0
        while not ended.wait(max(0.0, begin + number / per_second - time.monotonic())):
            last = number + ROWS_PER_TRANSACTION - 1
            connection.execute(INSERT, [name, time.monotonic_ns(), number, last])
            number = last + 1


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
