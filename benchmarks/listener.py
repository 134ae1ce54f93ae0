"""An idle relay's stand-in for the write benchmark: `python -m benchmarks.listener CHANNEL` takes in notifications."""

from __future__ import annotations

import os
import select
import sys

import psycopg


def main(channel: str) -> None:
    with psycopg.connect(os.environ["OUTBOX_DATABASE_URL"], autocommit=True, application_name="listener") as connection:
        connection.execute(f"LISTEN {channel}")
        wire = connection.pgconn
        while True:
            select.select([wire.socket], [], [])
            wire.consume_input()
            while wire.notifies():
                pass


if __name__ == "__main__":
    main(sys.argv[1])
