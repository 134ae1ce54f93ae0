"""One event's story from what the database holds: in which order things happened, what stands in the way. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from outbox.admin.story import Failure, HandlerStory, Moment, State, Story, Wait
from outbox.position import Position

MOST_SHOWN = 200
"""Characters of a result in the time line."""


def tell(id: UUID, facts: Mapping[str, Any]) -> Story:
    """The story of an event from what `sql/story.sql` found."""
    now = _time(facts["now"])
    event = facts["event"]
    letters = {letter["handler"]: letter for letter in facts["letters"]}
    tick, relay = facts["tick"], facts["relay"]
    position = Position(tick["id"], event["seq"]) if tick and event else None
    seen = _Seen(
        now, position, bool(relay["leads"]), bool(relay["paused"]), Position(relay["tick"], relay["seq"]), event
    )
    deliveries = {delivery["handler"]: delivery for delivery in facts["deliveries"]}
    rows = {handler["name"]: handler for handler in facts["handlers"]}
    handlers: list[HandlerStory] = []
    if event or deliveries or letters:
        names = sorted({*rows, *deliveries, *letters})
        handlers = [_at_handler(seen, name, rows.get(name), deliveries.get(name), letters.get(name)) for name in names]
    return Story(
        id=id,
        at=now,
        state=_state(facts, handlers),
        name=facts["name"],
        key=next((found["key"] for found in (event, facts["planned"], *letters.values()) if found), None),
        position=position,
        handlers=tuple(handlers),
        moments=_moments(facts, position, handlers, letters, deliveries),
        waits_for=_event_waits(facts, handlers),
    )


@dataclass(frozen=True)
class _Seen:
    """What all handlers have in common."""

    now: datetime
    position: Position | None
    led: bool
    held: bool
    published: Position
    event: Mapping[str, Any] | None


def _at_handler(
    seen: _Seen,
    name: str,
    row: Mapping[str, Any] | None,
    delivery: Mapping[str, Any] | None,
    letter: Mapping[str, Any] | None,
) -> HandlerStory:
    if delivery is None:
        if letter is not None and letter["replayed_at"] is None:
            return HandlerStory(
                name, "dead", letter["attempts"], error=letter["error"], updated_at=_time(letter["died_at"])
            )
        wait = None if row is None else _before_outcome(seen, row)
        return HandlerStory(name, "passed" if wait is None else "waiting", waits_for=wait)
    return HandlerStory(
        handler=name,
        state=delivery["state"],
        attempts=delivery["attempts"],
        replays=delivery["replays"],
        failures=tuple(each for each in _noted(delivery) if each.attempt),
        error=delivery["error"],
        result=delivery["result"],
        due_at=delivery["due_at"] and _time(delivery["due_at"]),
        updated_at=_time(delivery["updated_at"]),
        waits_for=_before_retry(seen, name, row, delivery) if delivery["state"] == "retrying" else None,
    )


def _before_retry(seen: _Seen, name: str, row: Mapping[str, Any] | None, delivery: Mapping[str, Any]) -> Wait:
    due = _time(delivery["due_at"])
    if delivery["leased"] and due > seen.now:
        return Wait("running", "an attempt is under way, or its worker died and the lease ends within seconds")
    if due > seen.now:
        return Wait("retry_due", f"the next attempt is due in {_span(due - seen.now)}")
    return _worker(seen, row, name, "its retry is due")


def _before_outcome(seen: _Seen, row: Mapping[str, Any]) -> Wait | None:
    """The first thing in the way of a handler that has no outcome; None when the event is not for it any more."""
    done = _position(row, "done")
    if seen.event is None or (seen.position is not None and done is not None and seen.position <= done):
        return None
    if seen.event["own"]:
        return Wait("commit", "the transaction that added it has not committed")
    if seen.position is None:
        return _relay(seen, "the relay has not taken it into a tick yet")
    if done is None:
        return _relay(seen, "the relay has not admitted this new handler yet", "admission")
    if row["attached"]:
        if seen.published < seen.position:
            return _relay(seen, "the relay has not published it yet")
        return _worker(seen, row, row["name"], "it is in the stream")
    fed = _position(row, "fed")
    if fed is not None and fed >= seen.position:
        return _worker(seen, row, row["name"], "it is in the handler's catch-up stream")
    behind = _worker(seen, row, row["name"], "")
    if behind.code != "worker":
        return behind
    return _relay(seen, "the handler is catching up and has not reached it yet", "catching_up")


def _relay(seen: _Seen, text: str, code: str = "relay") -> Wait:
    if seen.held:
        return Wait("paused", f"{text}: it is paused, see `outbox resume`")
    if not seen.led:
        return Wait("relay_down", f"{text}, and no relay leads: start `outbox relay`")
    return Wait(code, text)


def _worker(seen: _Seen, row: Mapping[str, Any] | None, name: str, text: str) -> Wait:
    if row is None:
        return Wait("no_worker", f"no worker has the handler {name} any more")
    if row["paused"]:
        return Wait("paused", f"the handler {name} is paused")
    if not row["workers"]:
        silence = _span(seen.now - _time(row["last_seen"]))
        return Wait("no_worker", f"no worker that serves {name} is alive; the last was seen {silence} ago")
    return Wait("worker", f"{text}; its worker runs it, or others before it")


def _event_waits(facts: Mapping[str, Any], handlers: list[HandlerStory]) -> Wait | None:
    """What the event waits for before it concerns any handler."""
    if facts["event"] is None:
        if handlers:
            return None
        if facts["planned"]:
            return Wait("due", f"it is scheduled for {facts['planned']['due_at']}")
        if facts["writers"]:
            return Wait("open_transaction", _open(facts["writers"], _time(facts["now"])))
        return Wait(
            "unknown_event",
            "no committed event has this id: it was never added, was rolled back, or is older than what is retained",
        )
    if not handlers and not facts["purged_at"]:
        return Wait("no_handler", f"no handler is registered for {facts['name']}; the event waits for one")
    return None


def _open(writers: list[Mapping[str, Any]], now: datetime) -> str:
    """Transactions that have events which nobody else can see yet."""
    shown = []
    for writer in sorted(writers, key=lambda each: each["since"] or "~")[:3]:
        who = f"session {writer['pid']}" if writer["pid"] else f"the prepared transaction {writer['prepared'] or '?'}"
        program = f" ({writer['program']})" if writer["program"] else ""
        shown.append(f"{who}{program}" + (f" for {_span(now - _time(writer['since']))}" if writer["since"] else ""))
    return "no committed event has this id; transactions that added events are open: " + ", ".join(shown)


def _state(facts: Mapping[str, Any], handlers: list[HandlerStory]) -> State:
    """Of all handlers together: what is still to be done comes first, then what failed."""
    states = {each.state for each in handlers} - {"passed"}
    order: tuple[State, ...] = ("waiting", "retrying", "dead", "cancelled", "done")
    for state in order:
        if state in states:
            return state
    if facts["event"] is None:
        return "scheduled" if facts["planned"] else "unknown"
    if facts["purged_at"]:
        return "cancelled"
    return "done" if handlers else "waiting"


def _moments(
    facts: Mapping[str, Any],
    position: Position | None,
    handlers: list[HandlerStory],
    letters: Mapping[str, Mapping[str, Any]],
    deliveries: Mapping[str, Mapping[str, Any]],
) -> tuple[Moment, ...]:
    found: list[Moment] = []
    event, tick = facts["event"], facts["tick"]
    if facts["planned"]:
        found.append(Moment(_time(facts["planned"]["created_at"]), "scheduled", detail=facts["planned"]["due_at"]))
    if event:
        copy = f", a copy of {event['copy_of']}" if event["copy_of"] else ""
        found.append(Moment(_time(event["created_at"]), "added", detail=f"seq {event['seq']}{copy}"))
        if event["committed_at"]:
            found.append(Moment(_time(event["committed_at"]), "committed"))
        elif tick:
            found.append(Moment(_time(tick["created_at"]), "committed", detail="by then"))
        elif not event["own"]:
            found.append(Moment(_time(facts["now"]), "committed", detail="by now"))
    elif letters:
        found.append(Moment(min(_time(each["event_created_at"]) for each in letters.values()), "added"))
    if tick and position:
        found.append(Moment(_time(tick["created_at"]), "in tick", detail=str(tick["id"])))
        relay = facts["relay"]
        if Position(relay["tick"], relay["seq"]) >= position and any(row["attached"] for row in facts["handlers"]):
            found.append(Moment(_time(tick["created_at"]), "published", detail=f"as {position}, soon after its tick"))
        for row in facts["handlers"]:
            fed = None if row["attached"] else _position(row, "fed")
            if fed is not None and fed >= position:
                detail = f"as {position} in its catch-up stream, after its tick"
                found.append(Moment(_time(tick["created_at"]), "published", row["name"], detail))
    if facts["purged_at"]:
        found.append(Moment(_time(facts["purged_at"]), "purged"))
    for each in handlers:
        replays = [note for note in _noted(deliveries.get(each.handler)) if not note.attempt]
        found += _at(each, letters.get(each.handler), replays)
    # Stable: what has the same time stays in the order of the path.
    return tuple(sorted(found, key=lambda moment: moment.at or _time(facts["now"])))


def _noted(delivery: Mapping[str, Any] | None) -> list[Failure]:
    """Attempts that failed, and among them replays, as attempt 0."""
    noted = (delivery and delivery["failures"]) or ()
    return [Failure(**{**each, "at": _time(each["at"])}) for each in noted]


def _at(story: HandlerStory, letter: Mapping[str, Any] | None, replays: list[Failure]) -> list[Moment]:
    found = [
        Moment(each.at, "failed", story.handler, f"attempt {each.attempt}: {each.error}") for each in story.failures
    ]
    found += [Moment(each.at, "replayed", story.handler, each.error) for each in replays]
    if letter is not None:
        if story.state != "dead":
            found.append(Moment(_time(letter["died_at"]), "dead", story.handler, letter["error"]))
        if letter["replayed_at"] and not replays:
            found.append(Moment(_time(letter["replayed_at"]), "replayed", story.handler))
    again = {0: "", 1: ", replayed once"}.get(story.replays, f", replayed {story.replays} times")
    if story.state in ("done", "dead", "cancelled"):
        times = f"{story.attempts} attempt{'' if story.attempts == 1 else 's'}"
        error = f": {story.error}" if story.error else ""
        result = "" if story.result is None else f", result {_shortened(story.result)}"
        found.append(Moment(story.updated_at, story.state, story.handler, f"{times}{again}{error}{result}"))
    elif story.due_at is not None:
        # Put back, it is due from microseconds before that is noted.
        due = max([story.due_at, *(each.at for each in replays)])
        found.append(Moment(due, "due", story.handler, f"attempt {story.attempts + 1}{again}"))
    return found


def _position(row: Mapping[str, Any], which: str) -> Position | None:
    tick, seq = row[f"{which}_tick"], row[f"{which}_seq"]
    return None if tick is None else Position(tick, seq)


def _shortened(result: Any) -> str:
    text = json.dumps(result, ensure_ascii=False)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1]}…"


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _span(length: timedelta) -> str:
    """A length of time in words: whole seconds below two minutes, then minutes, hours, days."""
    seconds = max(0, int(length.total_seconds()))
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
