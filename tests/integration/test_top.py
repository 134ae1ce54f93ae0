"""`outbox status` and `outbox top` as people see them, in this process."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import redis

from console import main
from console.commands import top
from console.servers import Redis
from outbox.names import lock_id
from outbox.position import END
from relay import lead

Db = psycopg.Connection[Any]


@pytest.fixture
def db(database_url: str) -> Iterator[Db]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def run(
    database_url: str, redis_server: Redis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """`outbox …` in this process, on this test's servers: what it prints."""
    monkeypatch.setenv("OUTBOX_DATABASE_URL", database_url)
    monkeypatch.setenv("OUTBOX_REDIS_URL", redis_server.url)
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: str) -> str:
        assert main.run(arguments) == 0
        return capsys.readouterr().out

    return command


@pytest.fixture
def at_work(db: Db, redis_server: Redis) -> Db:
    """A leader that sleeps, a worker, and two handlers of which one has something to do and to be tried again."""
    db.execute("SELECT pg_advisory_lock(%s)", [lock_id("relay", "outbox")])
    lead.announce(db, "outbox", "here:1")
    db.execute("SELECT setval('outbox.asleep', extract(epoch FROM clock_timestamp())::bigint + 60)")
    db.execute("INSERT INTO outbox.worker (name, handlers) VALUES ('shop-1', '{mail,bill}')")
    db.execute(
        "INSERT INTO outbox.handler (name, event_name, attached, done_tick, done_seq)"
        " VALUES ('bill', 'paid', true, 1, %s), ('mail', 'asked', true, 0, 0)",
        [END],
    )
    db.execute("INSERT INTO outbox.event (name, payload, created_at) VALUES ('asked', '{}', now() - interval '1 hour')")
    db.execute("INSERT INTO outbox.event (name, payload) VALUES ('paid', '{}')")
    db.execute(
        "INSERT INTO outbox.delivery (event_id, handler, event_created_at, state, attempts, due_at)"
        " SELECT id, 'bill', created_at, 'retrying', 1, now() - interval '5 minutes' FROM outbox.event"
        "  WHERE name = 'paid'"
    )
    with redis.Redis.from_url(redis_server.url) as client:
        client.xadd("outbox:{asked}", {"id": "x"}, id="5-1")
        client.xgroup_create("outbox:{asked}", "mail", "0")
        client.xreadgroup("mail", "shop-1", {"outbox:{asked}": ">"})
    return db


@pytest.mark.parametrize("command", [["status"], ["top"], ["top", "--once"]], ids=" ".join)
def test_a_look_says_who_leads_who_works_and_what_waits(
    run: Callable[..., str], at_work: Db, command: list[str]
) -> None:
    shown = run(*command)
    assert "here:1 leads (session " in shown
    assert "LISTEN wakes it" in shown
    assert "an event that could be run waits for 60 min" in shown
    assert "workers   1 alive" in shown
    (mail,) = (line.split() for line in shown.splitlines() if line.startswith("mail "))
    assert mail == ["mail", "asked", "live", "1", "1", "60", "min", "1", "0", "0", *mail[10:]]
    (bill,) = (line.split() for line in shown.splitlines() if line.startswith("bill "))
    assert bill == ["bill", "paid", "live", "1", "0", "5", "min", "0", "1", "0", *bill[10:]]
    assert "outbox:{asked}" in shown
    assert "shop-1" in shown
    assert str(END) not in shown
    assert "\x1b" not in shown


def test_top_has_what_waits_longest_on_top(run: Callable[..., str], at_work: Db) -> None:
    def order(shown: str) -> list[str]:
        lines = shown.splitlines()
        return [line.split()[0] for line in lines if line.startswith(("mail ", "bill "))]

    assert order(run("status")) == ["mail", "bill"], "by event name"
    assert order(run("top")) == ["mail", "bill"]
    at_work.execute("UPDATE outbox.delivery SET due_at = now() - interval '2 hours'")
    assert order(run("top")) == ["bill", "mail"]


def test_positions_behind_all_of_a_tick_are_readable_also_in_json(run: Callable[..., str], at_work: Db) -> None:
    printed = run("status", "-o", "json")
    assert '"done_to": "1-end"' in printed
    assert '"done_to": "start"' in printed
    assert str(END) not in printed


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_top_on_a_terminal_looks_again_and_outlasts_a_server_that_is_away(
    run: Callable[..., str], at_work: Db, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("LINES", "50")
    slept: list[float] = []
    looked: list[str] = []

    def pause(seconds: float) -> None:
        slept.append(seconds)
        looked.append(screen.getvalue())
        screen.truncate(0)
        if len(slept) == 1:
            at_work.execute("UPDATE outbox.worker SET seen_at = now() - interval '1 hour'")
        elif len(slept) == 2:
            at_work.execute("ALTER SCHEMA outbox RENAME TO away")
        elif len(slept) == 3:
            at_work.execute("ALTER SCHEMA away RENAME TO outbox")
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr(top.time, "sleep", pause)
    assert main.run(["top", "--interval", "0.5"]) == 0
    assert slept == [0.5] * 4
    signs = ("1 alive", "none is alive", "run `outbox migrate`", "none is alive")
    assert all(sign in look for sign, look in zip(signs, looked, strict=True))
