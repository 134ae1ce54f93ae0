"""Whose key prefix it is: a marker in Redis names the server, database and schema that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import redis

from outbox.errors import PrefixTakenError
from outbox.names import leader_key, owner_key, stream_key
from relay import progress

LEADER_SEEN_FOR = 15.0
"""Seconds for which Redis remembers that a relay led."""

_MOVED = (
    "choose another OUTBOX_PREFIX or another Redis; what is unfinished is published there, and nothing that this"
    " database does not know of is run"
)


def claim(client: redis.Redis, prefix: str, owner: str) -> None:
    """Mark a key prefix as this database's, or raise `PrefixTakenError` when it is another's."""
    if client.set(owner_key(prefix), owner, nx=True):
        return
    holder = _text(client.get(owner_key(prefix)))
    if holder is not None and holder != owner:
        raise PrefixTakenError(
            f"the Redis key prefix {prefix!r} belongs to {holder} (server/database/schema), this relay serves {owner}:"
            " choose another OUTBOX_PREFIX"
        )


def show_leader(client: redis.Redis, prefix: str, owner: str) -> None:
    """Let others see that this database's relay leads; keep the marker, or raise `PrefixTakenError`.

    It is another's when Redis forgot it and another relay came first.
    """
    claim(client, prefix, owner)
    client.set(leader_key(prefix), owner, px=int(LEADER_SEEN_FOR * 1000))


def take_over(
    client: redis.Redis,
    prefix: str,
    *,
    former: str,
    owner: str,
    streams: Iterable[str],
    last_tick: int,
    pause: Callable[[float], None],
) -> None:
    """Make the marker of the server that this database was on before ours, if that server is gone.

    It is not when a relay of it was seen lately, or when there are entries of ticks that this database does not know:
    then what it is given is a copy, or older than what was published. Raises `PrefixTakenError`.
    """
    if _text(client.get(owner_key(prefix))) != former:
        return
    for _ in range(int(LEADER_SEEN_FOR) + 1):
        leader = _text(client.get(leader_key(prefix)))
        if leader in (None, owner):
            break
        pause(1.0)
    else:
        raise PrefixTakenError(f"this database was restored from {former}, whose relay still uses {prefix!r}: {_MOVED}")
    for name in streams:
        last = progress.read(client, stream_key(prefix, name), "").last
        if last.tick > last_tick:
            raise PrefixTakenError(
                f"this database was restored from {former}, and the stream of {name!r} holds events that are not in it"
                f" (up to {last}): {_MOVED}"
            )
    client.set(owner_key(prefix), owner)


def _text(found: Any) -> str | None:
    return found.decode() if isinstance(found, bytes) else found
