"""Which lines of the servers' own logs a developer should see: warnings and worse."""

from __future__ import annotations

import re

POSTGRES_OPTIONS = {
    "log_line_prefix": "",
    # Statements and details can quote what is in the tables.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}
"""PostgreSQL's settings for a log that `Postgres` understands."""

VALKEY_OPTIONS = {"loglevel": "warning"}

Line = tuple[str, str]
"""A level, and what is to be shown."""

_POSTGRES_LEVELS = {"WARNING": "warning", "ERROR": "error", "FATAL": "critical", "PANIC": "critical"}
_POSTGRES = re.compile(r"^([A-Z]+\d?): +(.*)$")
_VALKEY = re.compile(r"^\d+:\w .*? # (.*)$")


class Postgres:
    """PostgreSQL's lines, one after the other: a message's further lines share its fate.

    >>> Postgres()("WARNING:  there is no transaction in progress")
    ('warning', 'WARNING: there is no transaction in progress')
    """

    def __init__(self) -> None:
        self._level: str | None = None

    def __call__(self, line: str) -> Line | None:
        """What is to be shown of a line, or None."""
        found = _POSTGRES.match(line)
        if found and not line.startswith("\t"):
            self._level = _POSTGRES_LEVELS.get(found[1])
            line = f"{found[1]}: {found[2]}"
        return (self._level, line.strip()) if self._level and line.strip() else None


def valkey(line: str) -> Line | None:
    """What is to be shown of a line of Valkey, or None.

    >>> valkey("12:M 21 Nov 2026 15:39:03.123 # Out of memory")
    ('warning', 'Out of memory')
    """
    found = _VALKEY.match(line)
    return ("warning", found[1]) if found else None
