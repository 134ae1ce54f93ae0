"""Logging of the long-running roles: dotted event names (`relay.tick`), data as key-values, never a payload."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

_shown = logging.INFO


def shows(level: int) -> bool:
    """Whether what is logged at this level of `logging` comes out, for what costs something to put together."""
    return level >= _shown


def configure(level: str = "info", form: str = "auto") -> None:
    """Send structured logs to stderr. `form` is auto, console, logfmt or json."""
    global _shown
    number = _shown = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    if form == "auto":
        form = "console" if sys.stderr.isatty() else "logfmt"
    renderer: Any
    if form == "json":
        renderer = structlog.processors.JSONRenderer()
    elif form == "console":
        # Not Rich's tracebacks, which show every local variable, passwords and payloads included.
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
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
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
