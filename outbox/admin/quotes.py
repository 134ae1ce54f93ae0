"""Which pieces of contents an audit row may quote: in an edit, a filter by content, or a part of an error. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from outbox.admin.edit import Edit

SHORTEST = 4
"""Characters of a piece that may say whose content it is; shorter ones stand in contents of anybody."""


def quotes(detail: Mapping[str, Any]) -> set[str]:
    """The texts to look for in contents, as they would stand in their JSON, from an audit row's detail.

    >>> sorted(quotes({"filter": {"error": "no mailbox ada@x"}, "edit": ["payload.mail=ada-new@x"]}))
    ['ada-new@x', 'ada@x', 'mailbox']
    """
    given = detail.get("filter")
    filtered = given if isinstance(given, Mapping) else {}
    found = [word.strip("'\"()[]{},.:;") for word in str(filtered.get("error", "")).split()]
    found += [str(field).partition("=")[2] for field in filtered.get("payload", ())]
    found.append(str(filtered.get("key", "")))
    edits = detail.get("edit")
    for text in edits if isinstance(edits, list) else ():
        try:
            [(_, value)] = Edit.parse([text]).steps
        except ValueError:
            # Programs describe their edits as they like.
            value = text
        found += _leaves(value)
    return {json.dumps(text, ensure_ascii=False)[1:-1] for text in found if len(text) >= SHORTEST}


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for each in value.values():
            yield from _leaves(each)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    elif value is not None and not isinstance(value, bool):
        yield str(value)
