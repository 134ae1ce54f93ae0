"""Logging of the long-running roles: dotted event names (`relay.started`), data as key-values, never a payload.

Only structlog is set up, and that only by our own programs. The root logger, and what the application does with it, is
left alone; an application that configures structlog itself has our lines in its own form. `docs/telemetry.md` has a
table of all names.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog

_shown = logging.INFO


def shows(level: int) -> bool:
    """Whether what is logged at this level of `logging` comes out, for what costs something to put together."""
    return level >= _shown


class _Stderr:
    """What stderr is at the moment. One that cannot be written to stops no work: nobody is there to be told."""

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def configure(level: str = "info", form: str = "auto") -> None:
    """Send structured logs to stderr.

    `level` is debug, info, warning, error or critical. `form` is auto, console, logfmt or json; auto is console on a
    terminal and json elsewhere. Colours are left out where `NO_COLOR` is set.

    >>> telemetry.configure("warning", "json")
    """
    global _shown
    number = _shown = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    if form == "auto":
        form = "console" if sys.stderr.isatty() else "json"
    renderer: Any
    if form == "json":
        renderer = structlog.processors.JSONRenderer()
    elif form == "console":
        # Not Rich's tracebacks, which show every local variable, passwords and payloads included.
        renderer = structlog.dev.ConsoleRenderer(
            colors=not os.environ.get("NO_COLOR"), exception_formatter=structlog.dev.plain_traceback
        )
    else:
        renderer = structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False)
    chain: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if form != "console":
        chain.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*chain, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Stderr())),
        cache_logger_on_first_use=True,
    )
