"""Editing a payload for a replay: values set at a path, or a JSON merge patch (RFC 7396). Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from outbox.payload import MAX_DEPTH, check_size, encode, encode_value

_JSON = json.JSONEncoder(ensure_ascii=False)
MOST_SHOWN = 80
"""Characters of an edit in a message."""
_TOO_DEEP = f"goes deeper than the {MAX_DEPTH} levels that a payload may have"


@dataclass(frozen=True)
class Edit:
    """What is changed in a payload, in this order. `described` is as it was given.

    >>> Edit.parse(["payload.template=welcome"]).apply('{"user_id": 7, "template": "welcom"}')
    '{"user_id":7,"template":"welcome"}'
    """

    described: tuple[str, ...]
    steps: tuple[tuple[tuple[str, ...], Any], ...]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Edit:
        """Read `payload.user_id=7` (JSON, or else a text) and `{"template": null}`, which removes `template`.

        A number in a path counts in an array. Raises `ValueError` for anything else, also for what is nested deeper
        than a payload may be.
        """
        return cls(tuple(texts), tuple(_step(text) for text in texts))

    def apply(self, payload_json: str) -> str:
        """The edited payload as JSON text; numbers stay as they are written. Raises `PayloadError` if it may not be
        stored, `ValueError` for a place in an array that is not there."""
        payload = json.loads(payload_json, parse_float=_Number, parse_int=_Number)
        for path, value in self.steps:
            payload = _set(payload, path, value) if path else _merged(payload, value)
        encode(payload)
        text = _text(payload)
        check_size(len(text.encode()))
        return text


class _Number(int):
    """A number as it is written, which a float may not hold. As an int it is 0: no checked size is above its own."""

    text: str

    def __new__(cls, text: str) -> _Number:
        number = super().__new__(cls)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{_JSON.encode(name)}:{_text(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    return str(value) if isinstance(value, _Number) else _JSON.encode(value)


def _step(text: str) -> tuple[tuple[str, ...], Any]:
    if text.lstrip().startswith("{"):
        try:
            return (), _value(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{_shown(text)} is no JSON: {error}") from None
    place, equals, value = text.partition("=")
    root, *path = place.strip().split(".")
    if root != "payload" or not path or not all(path) or not equals:
        raise ValueError(f"{_shown(text)} is neither like payload.user_id=7 nor a JSON object")
    if len(path) >= MAX_DEPTH:
        raise ValueError(f"{_shown(text)} {_TOO_DEEP}")
    try:
        return tuple(path), _value(value)
    except json.JSONDecodeError:
        return tuple(path), value


def _value(text: str) -> Any:
    """The value of a JSON text, one that handlers can read. Raises `json.JSONDecodeError` for another text, else
    `ValueError`."""
    try:
        value = json.loads(text, parse_float=_finite, parse_int=_readable)
        encode_value(value)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise ValueError(f"{_shown(text)} {_TOO_DEEP}") from None
    except ValueError as error:
        raise ValueError(f"{_shown(text)} cannot be stored: {error}") from None
    return value


def _finite(text: str) -> _Number:
    if not isfinite(float(text)):
        raise ValueError("a number is too large: pass it as a string")
    return _Number(text)


def _readable(text: str) -> _Number:
    int(text)
    return _Number(text)


def _shown(text: str) -> str:
    return repr(text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…")


def _set(target: Any, path: Sequence[str], value: Any) -> Any:
    if not path:
        return value
    step, rest = path[0], path[1:]
    if isinstance(target, list):
        if not step.isdecimal() or int(step) >= len(target):
            raise ValueError(f"there is no place {step!r} in an array of {len(target)}")
        return [_set(each, rest, value) if place == int(step) else each for place, each in enumerate(target)]
    fields = target if isinstance(target, dict) else {}
    return {**fields, step: _set(fields.get(step), rest, value)}


def _merged(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    fields = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            fields.pop(name, None)
        else:
            fields[name] = _merged(fields.get(name), value)
    return fields
