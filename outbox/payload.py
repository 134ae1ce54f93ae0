"""What may be stored in an event, and how Python values become JSON.

| Python | JSON |
|---|---|
| None, bool, str, int (any size), finite float | as they are |
| dict and other mappings with string keys | object, in the order of its keys |
| list, tuple | array |
| UUID, Decimal | string |
| datetime, date, time | ISO 8601 string; with its offset when it has one, without when it is naive |
| timedelta | ISO 8601 duration, as `P1DT2.5S` |
| Enum | its value |
| dataclass | object of its fields |
| pydantic model | its `model_dump(mode="json")`: by the names of its fields, secrets masked |

Everything else is refused: sets (they have no order), bytes, ORM instances, NaN and infinities, NUL characters and lone
surrogates, anything nested deeper than `MAX_DEPTH` or larger than `MAX_BYTES`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from math import isfinite
from typing import Any
from uuid import RFC_4122, UUID

from outbox.errors import PayloadError

MAX_BYTES = 256 * 1024
"""Size of a payload as UTF-8 JSON."""
MAX_DEPTH = 64
"""Levels of nesting, the payload itself being the first."""
MAX_KEY_LENGTH = 256
"""Characters in `_key`."""
MAX_HEADERS_BYTES = 16 * 1024
"""Size of all headers as UTF-8 JSON."""

_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"))
_ASCII = json.JSONEncoder(allow_nan=False, check_circular=False, separators=(",", ":"))
_AS_THEY_ARE = frozenset((str, int, bool, type(None)))
_MICROSECOND = timedelta(microseconds=1)


class _Refused(Exception):
    """Why a value cannot be stored; collects its path, innermost step first, on the way out."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps: list[str] = []


def encode(payload: object) -> str:
    """The JSON text of a payload: compact, not escaped to ASCII, keys in their order.

    `payload` is a mapping, a dataclass or a pydantic model. Raises `PayloadError`, with `.path` where one value is at
    fault.

    >>> encode({"user_id": 7, "due": date(2026, 1, 31)})
    '{"user_id":7,"due":"2026-01-31"}'
    """
    try:
        plain = _plain(payload, 1)
        if not isinstance(plain, dict):
            raise _Refused(f"must be an object (keyword arguments, a mapping or a model), not {_kind(payload)}")
        text = _dump(plain)
        size = _size(text)
        if size is None or "\\u0000" in text:
            _check_strings(plain)
    except _Refused as refused:
        path = "$" + "".join(reversed(refused.steps))
        raise PayloadError(f"payload {path}: {refused.reason}", path=path) from refused.__cause__
    assert size is not None
    check_size(size)
    return text


def check_size(size: int) -> None:
    """Raise `PayloadError` if so many bytes of JSON are too much for a payload."""
    if size > MAX_BYTES:
        raise PayloadError(
            f"payload is {size:,} bytes of JSON, the limit is {MAX_BYTES:,}: store the data elsewhere and pass its id"
        )


def encode_value(value: object) -> str:
    """The JSON text of any one value, by the same rules, but for size and NUL characters; escaped to ASCII, so that a
    database of any encoding holds it. Raises `PayloadError`, whose message may quote the value.

    >>> encode_value([1, UUID(int=7), "ü"])
    '[1,"00000000-0000-0000-0000-000000000007","\\u00fc"]'
    """
    try:
        plain = _plain(value, 1)
        text = _dump(plain)
        if _size(text) is None:
            raise _Refused("contains a lone surrogate, which is not Unicode text")
    except _Refused as refused:
        raise PayloadError(f"value: {refused.reason}") from refused.__cause__
    return text if text.isascii() else _ASCII.encode(plain)


def encode_headers(headers: Mapping[str, str]) -> str | None:
    """The JSON text of checked headers, None when there are none. Raises `PayloadError`."""
    if not headers:
        return None
    text = _dump(dict(headers))
    if len(text.encode()) > MAX_HEADERS_BYTES:
        raise PayloadError(f"headers are over {MAX_HEADERS_BYTES:,} bytes of JSON: put data into the payload")
    return text


def check_headers(headers: object) -> dict[str, str]:
    """A copy of `_headers` if they are strings by name, else `PayloadError`."""
    if not isinstance(headers, Mapping):
        raise PayloadError(f"_headers must be a mapping of strings, not {_kind(headers)}")
    checked: dict[str, str] = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise PayloadError(f"_headers must map strings to strings, not {_kind(name)} to {_kind(value)}")
        name, value = _exact(name), _exact(value)
        for part in (name, value):
            if problem := _problem(part):
                raise PayloadError(f"header {_shown(name)}: {problem}")
        checked[name] = value
    return checked


def check_key(key: object) -> str:
    """`_key` if it is a string of 1 to `MAX_KEY_LENGTH` characters that PostgreSQL can hold, else `PayloadError`."""
    if not isinstance(key, str):
        raise PayloadError(f"_key must be a string, not {_kind(key)}: use str(...)")
    key = _exact(key)
    if not 0 < len(key) <= MAX_KEY_LENGTH:
        raise PayloadError(f"_key must have 1 to {MAX_KEY_LENGTH} characters, not {len(key)}")
    if problem := _problem(key):
        raise PayloadError(f"_key: {problem}")
    return key


def check_id(given: object) -> UUID:
    """`_id` as a UUID if it is a UUIDv7, as object or string, else `PayloadError`."""
    try:
        found = given if isinstance(given, UUID) else UUID(str(given))
    except ValueError:
        found = None
    if found is None or found.version != 7 or found.variant != RFC_4122:
        raise PayloadError("_id must be a UUIDv7 (RFC 9562), so that ids sort by time: leave it out to get one")
    return found


def _dump(plain: Any) -> str:
    try:
        return _JSON.encode(plain)
    except ValueError as error:
        # What remains are integers beyond the interpreter's limit of digits, which json.loads could not read either.
        raise _Refused("an integer has too many digits: pass it as a string") from error


def _size(text: str) -> int | None:
    """Bytes of UTF-8; None when a lone surrogate cannot be encoded."""
    try:
        return len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        return None


def _plain(value: Any, depth: int) -> Any:
    """`value` built of dict, list, str, int, float, bool and None only; raises `_Refused`."""
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind is float:
        if isfinite(value):
            return value
        raise _Refused(f"{value} is not JSON: pass None or a string")
    if kind is dict:
        return _object(value, depth)
    if kind is list or kind is tuple:
        return _array(value, depth)
    return _converted(value, depth)


def _object(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    _check_depth(depth)
    plain = {}
    key: Any = None
    try:
        for key, item in value.items():
            if type(key) is not str:
                key = _checked_key(key)
            plain[key] = _plain(item, depth + 1)
    except _Refused as refused:
        if isinstance(key, str):
            refused.steps.append(_step(key))
        raise
    if len(plain) < len(value):
        raise _Refused("two of its keys are the same text, so that one value would be lost: rename one")
    return plain


def _array(value: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
    _check_depth(depth)
    plain: list[Any] = []
    try:
        for item in value:
            plain.append(_plain(item, depth + 1))
    except _Refused as refused:
        refused.steps.append(f"[{len(plain)}]")
        raise
    return plain


def _checked_key(key: object) -> str:
    if isinstance(key, Enum):
        key = key.value
    if not isinstance(key, str):
        raise _Refused(f"has a key of type {_kind(key)}; JSON has string keys only: use str(key)")
    return _exact(key)


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _Refused(f"nested deeper than {MAX_DEPTH} levels (or it contains itself)")


def _converted(value: Any, depth: int) -> Any:
    """The less common types, most specific first: an Enum may be a string, an ORM instance a dataclass."""
    if isinstance(value, Enum):
        return _plain(value.value, depth)
    if isinstance(value, str):
        return _exact(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return _plain(float.__float__(value), depth)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return _duration(value)
    if isinstance(value, Decimal):
        if value.is_finite():
            return str(value)
        raise _Refused(f"Decimal {value} is not a number: pass None or a string")
    if hasattr(type(value), "_sa_class_manager"):
        raise _Refused(f"{_kind(value)} is an ORM instance: pass its id and let the handler load it")
    if isinstance(value, Mapping):
        return _object(value, depth)
    if isinstance(value, list | tuple):
        return _array(value, depth)
    if isinstance(value, set | frozenset):
        raise _Refused("a set has no order: pass sorted(...) or a list")
    if isinstance(value, bytes | bytearray | memoryview):
        raise _Refused("bytes are not JSON: pass base64.b64encode(...).decode(), or store them and pass an id")
    if isinstance(value, type):
        raise _Refused(f"the class {value.__name__} is not a value: pass an instance")
    if is_dataclass(value):
        return _object({each.name: getattr(value, each.name) for each in fields(value)}, depth)
    if callable(getattr(type(value), "model_dump", None)):
        return _plain(_model_dump(value), depth)
    raise _Refused(f"{_kind(value)} is not JSON: pass plain values (str, int, float, bool, None, list, dict)")


def _model_dump(model: Any) -> object:
    try:
        dumped: object = model.model_dump(mode="json")
    except Exception as error:
        # The error's text may quote the value, which may be secret.
        problem = f"{_kind(model)} cannot be dumped as JSON ({type(error).__name__})"
        raise _Refused(f'{problem}: its own .model_dump(mode="json") says why') from None
    if not isinstance(dumped, dict | list | str | int | float | None):
        raise _Refused(f"{_kind(model)}.model_dump does not return plain values")
    return dumped


def _duration(value: timedelta) -> str:
    sign, value = ("-", -value) if value < timedelta(0) else ("", value)
    seconds, micro = divmod(value % timedelta(days=1) // _MICROSECOND, 1_000_000)
    days = f"{value.days}D" if value.days else ""
    fraction = f".{micro:06}".rstrip("0") if micro else ""
    return f"{sign}P{days}T{seconds}{fraction}S"


def _check_strings(value: Any) -> None:
    """Find the string that holds a NUL or a lone surrogate. Plain values only."""
    if isinstance(value, str):
        if problem := _problem(value):
            raise _Refused(problem)
    elif isinstance(value, dict):
        for key, item in value.items():
            if problem := _problem(key):
                raise _Refused(f"the key {_shown(key)}: {problem}")
            try:
                _check_strings(item)
            except _Refused as refused:
                refused.steps.append(_step(key))
                raise
    elif isinstance(value, list):
        for index, item in enumerate(value):
            try:
                _check_strings(item)
            except _Refused as refused:
                refused.steps.append(f"[{index}]")
                raise


def _problem(text: str) -> str | None:
    if "\0" in text:
        return "contains a NUL character, which PostgreSQL cannot hold"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "contains a lone surrogate, which is not Unicode text"
    return None


def _exact(text: str) -> str:
    """A plain `str` of a subclass's characters, whatever its own `__str__` says."""
    return str.__str__(text)


def _kind(value: object) -> str:
    return type(value).__name__


def _step(key: str) -> str:
    return f".{_shown(key)[1:-1]}" if key.isidentifier() else f"[{_shown(key)}]"


def _shown(text: str) -> str:
    """The beginning of a key, printable, for messages."""
    return ascii(_exact(text)[:40])
