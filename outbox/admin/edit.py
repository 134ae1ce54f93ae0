"""Editing a payload for a replay: values set at a path, or a JSON merge patch (RFC 7396). Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from outbox.payload import encode


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

        A number in a path counts in an array. Raises `ValueError` for anything else.
        """
        return cls(tuple(texts), tuple(_step(text) for text in texts))

    def apply(self, payload_json: str) -> str:
        """The edited payload as JSON text. Raises `PayloadError` if it may not be stored, `ValueError` for a place in
        an array that is not there."""
        payload = json.loads(payload_json)
        for path, value in self.steps:
            payload = _set(payload, path, value) if path else _merged(payload, value)
        return encode(payload)


def _step(text: str) -> tuple[tuple[str, ...], Any]:
    if text.lstrip().startswith("{"):
        try:
            return (), json.loads(text)
        except ValueError as error:
            raise ValueError(f"{text!r} is no JSON: {error}") from None
    place, equals, value = text.partition("=")
    root, *path = place.strip().split(".")
    if root != "payload" or not path or not all(path) or not equals:
        raise ValueError(f"{text!r} is neither like payload.user_id=7 nor a JSON object")
    try:
        return tuple(path), json.loads(value)
    except ValueError:
        return tuple(path), value


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
