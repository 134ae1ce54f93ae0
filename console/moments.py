"""Times as people type them: `2h` ago, or ISO 8601."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGO = re.compile(r"(?:\d{1,6}[smhdw])+\Z")


def parse(text: str, now: datetime) -> datetime:
    """The moment that is meant: `90s`, `15m`, `2h`, `1d12h`, `1w` before `now`, or ISO 8601 (UTC if it names no zone).

    Raises `ValueError` for anything else.

    >>> parse("2h", datetime(2026, 1, 1, 12, tzinfo=UTC)).hour
    10
    """
    text = text.strip()
    try:
        if _AGO.match(text):
            parts = re.findall(r"(\d+)([smhdw])", text)
            return now - sum((timedelta(**{_UNITS[unit]: int(number)}) for number, unit in parts), timedelta())
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is neither a time like 2h or 1d12h (ago) nor like 2026-01-31T12:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
