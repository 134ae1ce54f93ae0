"""Handlers are attached to the main stream although events never stop coming."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg

WRITERS = 6
PAUSE = 0.005
"""Seconds: together they write within any of the relay's rounds, and too little to fill a catch-up stream soon."""


def test_handlers_are_attached_while_events_keep_coming(cast: Any) -> None:
    over, failures = threading.Event(), list[BaseException]()

    def write() -> None:
        try:
            with psycopg.connect(cast.settings.libpq_url(), autocommit=True) as connection:
                while not over.is_set():
                    connection.execute("INSERT INTO outbox.event (name, payload) VALUES ('told', '{}')")
                    time.sleep(PAUSE)
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, daemon=True) for _ in range(WRITERS)]
    for writer in writers:
        writer.start()
    try:
        cast.wait_for(lambda: cast.one("SELECT count(*) FROM outbox.event") > 0 or failures, "events")
        cast.relay()
        for number in range(4):
            cast.register(f"listener{number}", "told")
        cast.await_attached()
    finally:
        over.set()
        for writer in writers:
            writer.join(20)
    assert not failures
