"""What an event's facts say about where it is and what it waits for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from outbox.admin.story import Story
from outbox.admin.telling import tell

ID = UUID(int=7)
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def ago(**length: float) -> str:
    return (NOW - timedelta(**length)).isoformat()


def handler(**other: Any) -> dict[str, Any]:
    """An attached handler with a worker, which is done up to before the event."""
    usual = {
        "name": "h", "attached": True, "paused": False, "done_tick": 5, "done_seq": 0, "fed_tick": None,
        "fed_seq": None, "last_seen": ago(seconds=3), "workers": 1,
    }  # fmt: skip
    return usual | other


def delivery(state: str = "done", **other: Any) -> dict[str, Any]:
    usual = {
        "handler": "h", "state": state, "attempts": 1, "replays": 0, "due_at": None, "leased": False, "error": None,
        "failures": None, "result": None, "updated_at": ago(seconds=1),
    }  # fmt: skip
    return usual | other


def story(*handlers: dict[str, Any], deliveries: Any = (), **other: Any) -> Story:
    """Of an event with seq 42 in the published tick 7."""
    usual: dict[str, Any] = {
        "now": NOW.isoformat(),
        "name": "paid",
        "event": {
            "name": "paid", "key": "k", "created_at": ago(minutes=1), "seq": 42, "own": False, "committed_at": None,
            "copy_of": None,
        },
        "tick": {"id": 7, "created_at": ago(seconds=50)},
        "relay": {"tick": 7, "seq": 50, "paused": False, "leads": True},
        "planned": None,
        "purged_at": None,
        "handlers": list(handlers),
        "deliveries": list(deliveries),
        "letters": [],
        "writers": [],
    }  # fmt: skip
    return tell(ID, usual | other)


def test_the_time_line_tells_the_beginning_of_a_result_and_the_handler_has_all_of_it() -> None:
    told = story(handler(), deliveries=[delivery(result={"pages": 3})])
    assert told.moments[-1].detail == '1 attempt, result {"pages": 3}'
    assert told.handlers[0].result == {"pages": 3}
    told = story(handler(), deliveries=[delivery(result="a" * 8000)])
    assert told.moments[-1].detail == f'1 attempt, result "{"a" * 198}…'
    assert told.handlers[0].result == "a" * 8000
    assert story(handler(), deliveries=[delivery(result=False)]).moments[-1].detail == "1 attempt, result false"
    assert story(handler(), deliveries=[delivery()]).moments[-1].detail == "1 attempt"


DOWN = {"tick": 6, "seq": 9, "paused": False, "leads": False}


@pytest.mark.parametrize(
    ("code", "said", "told"),
    [
        ("no_handler", "no handler is registered for paid", story()),
        ("relay", "has not taken it into a tick yet", story(handler(), tick=None)),
        ("relay_down", "no relay leads", story(handler(), tick=None, relay=DOWN)),
        ("relay", "has not published it yet", story(handler(), relay=DOWN | {"leads": True})),
        ("relay_down", "no relay leads", story(handler(), relay=DOWN)),
        ("paused", "see `outbox resume`", story(handler(), relay=DOWN | {"paused": True})),
        (
            "admission",
            "has not admitted this new handler",
            story(handler(attached=False, done_tick=None, done_seq=None)),
        ),
        ("catching_up", "has not reached it yet", story(handler(attached=False, fed_tick=6, fed_seq=1))),
        ("relay_down", "no relay leads", story(handler(attached=False, fed_tick=6, fed_seq=1), relay=DOWN)),
        ("worker", "in the handler's catch-up stream", story(handler(attached=False, fed_tick=7, fed_seq=42))),
        ("worker", "it is in the stream", story(handler())),
        ("paused", "h is paused", story(handler(paused=True))),
        ("no_worker", "was seen 3 hours ago", story(handler(workers=0, last_seen=ago(hours=3)))),
        (
            "no_worker",
            "was seen 3 hours ago",
            story(handler(attached=False, fed_tick=6, fed_seq=1, workers=0, last_seen=ago(hours=3))),
        ),
        ("retry_due", "due in 90 s", story(handler(), deliveries=[delivery("retrying", due_at=ago(seconds=-90))])),
        ("worker", "retry is due", story(handler(), deliveries=[delivery("retrying", due_at=ago(seconds=1))])),
        ("paused", "paused", story(handler(paused=True), deliveries=[delivery("retrying", due_at=ago(seconds=1))])),
        ("no_worker", "no worker has the handler h", story(deliveries=[delivery("retrying", due_at=ago(seconds=1))])),
        (
            "running",
            "an attempt is under way",
            story(handler(), deliveries=[delivery("retrying", due_at=ago(seconds=-5), leased=True)]),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_event_that_waits_says_what_for(code: str, said: str, told: Story) -> None:
    (wait,) = told.waits
    assert wait.code == code
    assert said in wait.text
    assert told.state in ("waiting", "retrying")


NOBODY: dict[str, Any] = {"event": None, "tick": None, "name": None}


@pytest.mark.parametrize(
    ("code", "said", "told"),
    [
        ("unknown_event", "never added, was rolled back, or is older", story(**NOBODY)),
        (
            "open_transaction",
            "session 12 (shop-api) for 2 hours, the prepared transaction t1 for 5 s",
            story(
                **NOBODY,
                writers=[
                    {"pid": None, "program": None, "since": ago(seconds=5), "prepared": "t1"},
                    {"pid": 12, "program": "shop-api", "since": ago(hours=2), "prepared": None},
                ],
            ),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_event_that_nobody_can_see_says_why_that_may_be(code: str, said: str, told: Story) -> None:
    (wait,) = told.waits
    assert (wait.code, told.state) == (code, "unknown")
    assert said in wait.text


def test_what_its_own_transaction_added_waits_for_the_commit() -> None:
    event = {
        "name": "paid",
        "key": None,
        "created_at": ago(seconds=1),
        "seq": 42,
        "own": True,
        "committed_at": None,
        "copy_of": None,
    }
    told = story(handler(), event=event, tick=None)
    assert [wait.code for wait in told.waits] == ["commit"]
    assert [moment.what for moment in told.moments] == ["added"]


def test_a_handler_that_began_later_waits_for_nothing() -> None:
    told = story(handler(done_tick=7, done_seq=42), handler(name="g"), deliveries=[delivery(handler="g")])
    assert {each.handler: each.state for each in told.handlers} == {"h": "passed", "g": "done"}
    assert told.state == "done"
    assert told.waits == ()


@pytest.mark.parametrize(
    ("states", "state"),
    [(["done", "dead"], "dead"), (["done", "retrying", "dead"], "retrying"), (["done"], "done"), ([], "waiting")],
)
def test_the_state_of_all_is_that_of_whoever_is_least_far(states: list[str], state: str) -> None:
    deliveries = [
        delivery(each, handler=f"h{n}", due_at=ago(seconds=-9) if each == "retrying" else None)
        for n, each in enumerate(states)
    ]
    assert story(deliveries=deliveries).state == state


def test_the_time_line_goes_from_the_adding_to_the_outcome() -> None:
    failures = [{"attempt": n, "at": ago(seconds=30 - n), "error": f"no {n}"} for n in (1, 2)]
    told = story(handler(), deliveries=[delivery("done", attempts=3, failures=failures)])
    assert [(moment.what, moment.handler) for moment in told.moments] == [
        ("added", None), ("committed", None), ("in tick", None), ("published", None),
        ("failed", "h"), ("failed", "h"), ("done", "h"),
    ]  # fmt: skip
    assert told.moments[1].detail == "by then"
    assert told.moments[4].detail == "attempt 1: no 1"
    assert [moment.at for moment in told.moments] == sorted(moment.at for moment in told.moments if moment.at)
    assert str(told.position) == "7-42"


def test_a_replay_and_a_death_are_on_the_time_line() -> None:
    letter = {
        "handler": "h", "key": "k", "event_created_at": ago(hours=1), "attempts": 10, "error": "boom",
        "died_at": ago(minutes=9), "replayed_at": ago(minutes=4),
    }  # fmt: skip
    told = story(handler(), deliveries=[delivery("done", replays=1)], letters=[letter])
    assert [moment.what for moment in told.moments][:2] == ["dead", "replayed"]
    assert told.moments[-1].detail == "1 attempt, replayed once"
    waiting = story(handler(), deliveries=[delivery("retrying", due_at=ago(seconds=-60), attempts=0)], letters=[letter])
    assert (waiting.moments[-1].what, waiting.moments[-1].detail) == ("due", "attempt 1")


def test_each_replay_says_when_who_and_what_it_was_before() -> None:
    failures = [
        {"attempt": 10, "at": ago(minutes=9), "error": "no"},
        {"attempt": 0, "at": ago(minutes=8), "error": "by ann@desk; it was dead since 11:51"},
        {"attempt": 0, "at": ago(seconds=20), "error": "by bob@desk; it was done since 11:53"},
    ]
    waiting = delivery("retrying", due_at=ago(seconds=10), attempts=0, replays=2, failures=failures)
    told = story(handler(), deliveries=[waiting], letters=[LETTER | {"replayed_at": ago(minutes=8)}])
    assert [(each.what, each.detail) for each in told.moments if each.what in ("replayed", "due", "failed")] == [
        ("failed", "attempt 10: no"),
        ("replayed", "by ann@desk; it was dead since 11:51"),
        ("replayed", "by bob@desk; it was done since 11:53"),
        ("due", "attempt 1, replayed 2 times"),
    ]
    assert [each.attempt for each in told.handlers[0].failures] == [10], "a replay is no failure"


def test_what_a_catch_up_feed_published_is_on_the_time_line_of_its_handler() -> None:
    feeding = [handler(name=name, attached=False, fed_tick=7, fed_seq=seq) for name, seq in (("h", 42), ("g", 41))]
    told = story(*feeding)
    published = [(each.handler, each.detail) for each in told.moments if each.what == "published"]
    assert published == [("h", "as 7-42 in its catch-up stream, after its tick")]


LETTER = {
    "handler": "h", "key": "k", "event_created_at": ago(hours=1), "attempts": 10, "error": "boom",
    "died_at": ago(minutes=9), "replayed_at": None,
}  # fmt: skip


def test_a_dead_letter_tells_the_story_of_an_event_that_went_with_the_retention() -> None:
    letter = {
        "handler": "h", "key": "k", "event_created_at": ago(days=9), "attempts": 10, "error": "boom",
        "died_at": ago(days=8), "replayed_at": None,
    }  # fmt: skip
    told = story(handler(), **NOBODY | {"name": "paid"}, letters=[letter])
    assert (told.state, told.key, told.waits) == ("dead", "k", ())
    assert told.handlers[0].error == "boom"


def test_a_scheduled_event_waits_until_it_is_due() -> None:
    planned = {"due_at": ago(minutes=-5), "created_at": ago(minutes=1), "key": "k"}
    told = story(**NOBODY | {"name": "paid"}, planned=planned)
    assert (told.state, told.key, [wait.code for wait in told.waits]) == ("scheduled", "k", ["due"])


def test_a_story_is_plain_values_for_an_endpoint() -> None:
    found = story(handler(), deliveries=[delivery()]).as_dict()
    assert (found["id"], found["position"], found["state"]) == (str(ID), "7-42", "done")
    assert found["handlers"][0]["handler"] == "h"


def test_a_purged_event_waits_for_nothing_and_says_when_that_was() -> None:
    for told in (story(purged_at=ago(seconds=5)), story(deliveries=[delivery("cancelled")], purged_at=ago(seconds=5))):
        assert (told.state, told.waits) == ("cancelled", ())
        assert "purged" in [moment.what for moment in told.moments]
