"""What a handler's return value leaves behind: its JSON, where it has one and that is small. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from outbox.payload import encode_value
from workers.outcome import DONE, Done, Outcome

LARGEST = 8 * 1024
"""Bytes of a result's JSON. It is for an answer, or for where the answer is."""


@dataclass(frozen=True, slots=True)
class NotKept:
    """Why a result is dropped: its type, and what is wrong with it. Nothing of the value, which may be secret."""

    type: str
    why: str


def kept(returned: object) -> Done | NotKept:
    """What a handler that worked and returned this comes to: `Done`, with the result as it will be read again.

    The rules are those of payloads (`outbox/payload.py`), for any one JSON value. `DONE` itself stands for all that
    leave none.

    >>> kept((1, 2))
    Done(result=[1, 2])
    >>> kept({1, 2})
    NotKept(type='set', why='it is not JSON')
    """
    if isinstance(returned, NotKept):
        return returned
    if isinstance(returned, Done):
        if returned.json is not None:
            return returned
        returned = returned.result
    if returned is None or isinstance(returned, Outcome):
        return DONE
    large = NotKept(type(returned).__name__, f"its JSON is larger than {LARGEST:,} bytes")
    try:
        if _left(returned, LARGEST) < 0:
            return large
        text = encode_value(returned)
        if len(text) > LARGEST:
            return large
        value = json.loads(text)
    except Exception:
        # Whatever a value of somebody's own type may raise while it is looked at.
        return NotKept(type(returned).__name__, "it is not JSON")
    if value is None:
        return DONE
    done = Done(value)
    object.__setattr__(done, "json", text)
    return done


def _left(value: object, room: int) -> int:
    """What is left of so many bytes when what is certainly needed is taken off: negative as soon as that is too much.

    A million rows that somebody returned without a thought are not walked through.
    """
    if isinstance(value, str):
        return room - len(value)
    if isinstance(value, Mapping):
        for key, item in value.items():
            room = _left(item, _left(key, room - 1))
            if room < 0:
                break
    elif isinstance(value, list | tuple):
        for item in value:
            room = _left(item, room - 1)
            if room < 0:
                break
    return room
