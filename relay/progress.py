"""How far the handlers of a stream are, read from Redis; and what follows from it. The decisions are pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis

from outbox.position import END, ORIGIN, Position
from relay import scripts

AWAY = Position(END, END)
"""Where the group of a detached handler is put on the main stream: it is given nothing there."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A stream and one of its groups at one moment."""

    last: Position
    """The id of the stream's last entry, also when that was trimmed."""
    length: int
    delivered: Position | None
    """The group's last delivered id; `AWAY` when it was taken off; None when there is no such group."""
    pending: Position | None
    """The group's lowest id that is delivered and not acknowledged."""
    present: Position
    """The id of the last entry that the stream still has; `ORIGIN` when it has none."""


def read(client: redis.Redis, key: str, group: str) -> Progress:
    """One script, one moment."""
    return parse(client.eval(scripts.lua("progress"), 1, key, group))


def parse(answer: Any) -> Progress:
    """The script's answer as a value."""
    last, length, delivered, pending, present = answer
    return Progress(
        last=Position.parse(last),
        length=int(length),
        delivered=Position.parse(delivered) if delivered else None,
        pending=Position.parse(pending) if pending else None,
        present=Position.parse(present) if present else ORIGIN,
    )


def before(position: Position) -> Position:
    """The highest position below the one of an event."""
    return Position(position.tick, position.seq - 1) if position.seq else Position(position.tick - 1, END)


def after(position: Position) -> Position:
    """The lowest position above: what a stream is trimmed to when all up to `position` is finished."""
    return Position(position.tick, position.seq + 1)


def finished(progress: Progress, published: Position) -> Position | None:
    """Up to where a group has finished all that a feed has put on this stream; None when that cannot be told.

    `published` is the feed's position, read before `progress` was. What somebody else trimmed unread counts as
    finished: the group will never be given it, and the check of all that is finished finds it.
    """
    if progress.delivered is None or progress.delivered == AWAY:
        return None
    if progress.pending is not None:
        return before(progress.pending)
    if progress.delivered < progress.present:
        return progress.delivered
    return max(published, progress.delivered)


def finished_everywhere(
    own: Progress, main: Progress, *, attached: bool, published: Position, fed: Position | None
) -> Position | None:
    """Up to where a handler has finished, over its catch-up stream and the main one; None when that cannot be told.

    A catch-up stream that does not exist holds nothing back. What a detached handler has pending on the main one does.
    """
    if attached:
        feed = finished(main, published)
    else:
        feed = fed
        if main.pending is not None and feed is not None:
            feed = min(feed, before(main.pending))
    if feed is None:
        return None
    if own.last == ORIGIN:
        return feed
    if own.pending is not None:
        return min(feed, before(own.pending))
    if own.delivered is None:
        return None
    if own.delivered < own.present:
        return min(feed, own.delivered)
    return feed
