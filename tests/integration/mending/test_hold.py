"""Pausing and resuming by command: what is written, what is said, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from outbox import admin
from outbox.errors import UnknownError
from tests.integration.mending.conftest import Result, audits, register

Db = psycopg.Connection[Any]
Run = Callable[..., Result]


def paused(db: Db) -> dict[str, bool]:
    return {handler.name: handler.paused for handler in admin.status(db).handlers}


def test_a_handler_rests_with_who_when_and_why(outbox: Run, db: Db) -> None:
    register(db, "bill", "mail")
    done = outbox("pause", "handler", "bill", "--reason", "the bank is closed", "--yes")
    assert (done.status, done.out) == (0, "handler bill is paused\n")
    assert paused(db) == {"bill": True, "mail": False}
    shown = outbox("status").out
    assert "paused    handler bill since 2" in shown
    assert ": the bank is closed\n" in shown
    assert outbox("status", "-o", "json").json["holds"][0]["reason"] == "the bank is closed"
    again = outbox("pause", "handler", "bill", "--yes")
    assert (again.status, "is paused already, since 2" in again.out) == (0, True)
    assert outbox("resume", "handler", "bill", "--reason", "it is open", "--yes").out == "handler bill goes on\n"
    assert paused(db) == {"bill": False, "mail": False}
    assert outbox("resume", "handler", "bill", "--yes").out == "handler bill is not paused\n"
    what = {"what": "handler", "name": "bill"}
    assert audits(db) == [("pause", "the bank is closed", what), ("resume", "it is open", what)]


def test_an_event_that_is_paused_rests_at_all_of_its_handlers_also_at_new_ones(outbox: Run, db: Db) -> None:
    register(db, "bill")
    register(db, "greet", event="signed_up")
    outbox("pause", "event", "order", "--yes")
    outbox("pause", "handler", "bill", "--yes")
    register(db, "ship")
    assert paused(db) == {"bill": True, "ship": True, "greet": False}
    outbox("resume", "event", "order", "--yes")
    assert paused(db) == {"bill": True, "ship": False, "greet": False}


def test_the_relay_rests_without_a_name(outbox: Run, db: Db) -> None:
    assert outbox("pause", "relay", "--yes", "-o", "json").json == {
        "what": "relay",
        "name": "",
        "changed": True,
        "dry_run": False,
    }
    assert [(hold.what, hold.name) for hold in admin.holds(db)] == [("relay", "")]
    assert outbox("resume", "relay", "--yes").out == "the relay goes on\n"


def test_a_dry_run_changes_nothing_and_needs_no_yes(outbox: Run, db: Db) -> None:
    register(db, "bill")
    assert outbox("pause", "handler", "bill", "--dry-run").out == "would pause handler bill\n"
    assert admin.holds(db) == []
    outbox("pause", "handler", "bill", "--yes")
    assert outbox("resume", "handler", "bill", "--dry-run").out == "would resume handler bill\n"
    assert len(admin.holds(db)) == 1


@pytest.mark.parametrize("arguments", [("pause", "relay"), ("pause", "handler", "bill")])
def test_without_a_terminal_nothing_is_changed_unless_yes_is_said(outbox: Run, db: Db, arguments: tuple[str]) -> None:
    register(db, "bill")
    refused = outbox(*arguments)
    assert (refused.status, "add --yes" in refused.err) == (2, True)
    assert admin.holds(db) == []


def test_a_name_that_nobody_announced_is_refused(outbox: Run, db: Db) -> None:
    register(db, "bill")
    refused = outbox("pause", "handler", "bil", "--yes")
    assert (refused.status, refused.err) == (
        1, "outbox: there is no handler 'bil'; `outbox status` shows those that there are\n"
    )  # fmt: skip
    with pytest.raises(UnknownError):
        admin.pause(db, "event", "bill")


def test_a_stream_is_its_event(outbox: Run, db: Db) -> None:
    register(db, "bill")
    done = outbox("pause", "stream", "order", "--yes", "-o", "json")
    assert (done.status, done.json["what"], done.json["changed"]) == (0, "event", True)
    assert [(hold.what, hold.name) for hold in admin.holds(db)] == [("event", "order")]
    assert outbox("resume", "stream", "order", "--yes").out == "event order goes on\n"
    assert admin.holds(db) == []


@pytest.mark.parametrize("arguments", [("relay", "bill"), ("handler",), ("event",), ("stream",), ("group", "x"), ()])
def test_what_cannot_be_paused_is_wrong_usage(outbox: Run, arguments: tuple[str]) -> None:
    assert outbox("pause", *arguments, "--yes").status == 2
