"""One event's story as `outbox status ID` shows it: a time line, each handler, and what it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from console.listing import cell, note, place, say, span, table

if TYPE_CHECKING:
    from console.whereabouts import Place
    from outbox.admin import HandlerStory, Story
    from outbox.settings import Settings


def look(settings: Settings, story: Story) -> tuple[list[Place] | None, str | None]:
    """Where Redis has the event's entry, or why Redis cannot say."""
    import redis

    from console.whereabouts import places
    from outbox.admin.streams import opened

    try:
        with opened(settings) as client:
            return places(client, settings.prefix, story), None
    except redis.RedisError as error:
        return None, str(error)


def show(story: Story, places: Sequence[Place] | None, away: str | None) -> None:
    """Print the story for people."""
    say(f"{story.id}  {story.name or 'unknown'}{f', key {cell(story.key)}' if story.key else ''}: {story.state}")
    if story.moments:
        say()
        table(
            ("WHEN", "WHAT", "HANDLER", "DETAIL"),
            [(moment(each.at), each.what, each.handler, each.detail) for each in story.moments],
        )
    for found in places or ():
        held = "nobody has it yet" if found.held_by is None else f"{found.held_by} has it, {_since(found)}"
        say(f"in {found.stream} for {found.handler}: {cell(held)}")
    for lost in missing(story, places):
        say(f"no stream has it for {lost}: Redis lost or trimmed it, and the relay's sweep makes it a retry")
    if away is not None and any(each.state == "waiting" for each in story.handlers):
        note(f"Redis could not be asked: {cell(away)}")
    if story.waits:
        say()
    for wait in lines(story):
        say(wait)


def missing(story: Story, places: Sequence[Place] | None) -> list[str]:
    """The handlers that should find it in a stream, and do not. Nobody, when Redis could not be asked."""
    if places is None:
        return []
    has = {place.handler for place in places}
    wanted = [each.handler for each in story.handlers if each.state == "waiting" and _code(each) == "worker"]
    return [handler for handler in wanted if handler not in has]


def _code(handler: HandlerStory) -> str | None:
    return None if handler.waits_for is None else handler.waits_for.code


def lines(story: Story) -> list[str]:
    """What it waits for, a line each."""
    own = [f"waits: {story.waits_for.text}"] if story.waits_for else []
    return own + [f"{each.handler} waits: {each.waits_for.text}" for each in story.handlers if each.waits_for]


def described(story: Story, places: Sequence[Place] | None, away: str | None) -> dict[str, Any]:
    """The same as JSON values."""
    return {
        **story.as_dict(),
        "position": None if story.position is None else place(story.position),
        "places": None if places is None else [asdict(each) for each in places],
        "redis_error": away,
    }


def moment(at: datetime | None) -> str:
    """A time with its milliseconds: steps follow each other within few."""
    return "–" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"


def _since(found: Place) -> str:
    return "" if found.held_for is None else f"renewed {span(found.held_for)} ago"
