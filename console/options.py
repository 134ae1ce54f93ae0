"""The flags that every command shares, and the settings they make: flag > environment > `.env`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outbox.errors import ConfigurationError

if TYPE_CHECKING:
    from outbox.settings import Settings

_PLACE = "Where"
_LOGS = "Logs"
_PORT = "Metrics and health"

DatabaseUrl = Annotated[
    str | None,
    typer.Option("--database-url", metavar="URL", help="PostgreSQL [OUTBOX_DATABASE_URL].", rich_help_panel=_PLACE),
]
RedisUrl = Annotated[
    str | None,
    typer.Option("--redis-url", metavar="URL", help="Redis [OUTBOX_REDIS_URL].", rich_help_panel=_PLACE),
]
Schema = Annotated[
    str | None,
    typer.Option("--schema", metavar="NAME", help="PostgreSQL schema [OUTBOX_SCHEMA].", rich_help_panel=_PLACE),
]
Prefix = Annotated[
    str | None,
    typer.Option("--prefix", metavar="TEXT", help="How Redis keys begin [OUTBOX_PREFIX].", rich_help_panel=_PLACE),
]
LogLevel = Annotated[
    str | None,
    typer.Option(
        "--log-level", metavar="LEVEL", help="debug, info, warning, error or critical.", rich_help_panel=_LOGS
    ),
]
LogFormat = Annotated[
    str | None,
    typer.Option("--log-format", metavar="FORMAT", help="auto, console, logfmt or json.", rich_help_panel=_LOGS),
]

MetricsPort = Annotated[
    int | None,
    typer.Option(
        "--metrics-port", metavar="PORT", min=0, max=65535, rich_help_panel=_PORT,
        help="Serve /metrics, /livez and /readyz there; 0 for a free port [OUTBOX_METRICS_PORT].",
    ),
]  # fmt: skip
MetricsHost = Annotated[
    str | None,
    typer.Option(
        "--metrics-host", metavar="ADDRESS", rich_help_panel=_PORT,
        help="Where that listens, 127.0.0.1 unless said otherwise [OUTBOX_METRICS_HOST].",
    ),
]  # fmt: skip

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")]
Why = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the audit table.", show_default=False)]
Reason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why, for the audit table.")]

_LEVELS = ("debug", "info", "warning", "error", "critical")
_FORMATS = ("auto", "console", "logfmt", "json")


def settings(**flags: Any) -> Settings:
    """Settings from the environment, overridden by the flags that were given.

    Raises `ConfigurationError` for a value that cannot be used.
    """
    _tell_writers(flags.get("schema_name"))
    from pydantic import ValidationError

    from outbox.database import checked
    from outbox.settings import load

    try:
        found = load(**flags)
        for url in filter(None, (found.database_url, found.relay_database_url)):
            checked(url.get_secret_value())
    except ValidationError as error:
        # The values are left out: one of them may be a URL with its password.
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
        raise ConfigurationError(f"wrong setting: {wrong}") from None
    if found.log_level.lower() not in _LEVELS:
        raise ConfigurationError(f"unknown log level {found.log_level!r}: use one of {', '.join(_LEVELS)}")
    if found.log_format not in _FORMATS:
        raise ConfigurationError(f"unknown log format {found.log_format!r}: use one of {', '.join(_FORMATS)}")
    return found


def _tell_writers(schema: str | None) -> None:
    """Let `outbox.add` in a handler write to the schema of the flag or of `.env`.

    It looks for the name in the environment, once, when `outbox` is imported.
    """
    if schema is None and "OUTBOX_SCHEMA" not in os.environ:
        from dotenv import dotenv_values

        schema = dotenv_values(".env").get("OUTBOX_SCHEMA")
    if schema:
        os.environ["OUTBOX_SCHEMA"] = schema
