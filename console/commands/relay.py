"""`outbox relay`: publish committed events to Redis."""

from __future__ import annotations

import typer

from console import options


def relay(
    database_url: options.DatabaseUrl = None,
    redis_url: options.RedisUrl = None,
    schema: options.Schema = None,
    prefix: options.Prefix = None,
    log_level: options.LogLevel = None,
    log_format: options.LogFormat = None,
    metrics_port: options.MetricsPort = None,
    metrics_host: options.MetricsHost = None,
) -> None:
    """Publish committed events to Redis streams, until SIGTERM or Ctrl-C.

    Run two or more: one leads, the others take over when it goes.

    \b
    outbox relay
    outbox relay --log-format json
    """
    from outbox import telemetry
    from relay import service

    settings = options.settings(
        database_url=database_url,
        redis_url=redis_url,
        schema_name=schema,
        prefix=prefix,
        log_level=log_level,
        log_format=log_format,
        metrics_port=metrics_port,
        metrics_host=metrics_host,
    )
    settings.libpq_url(direct=True)
    telemetry.configure(settings.log_level, settings.log_format)
    raise typer.Exit(service.run(settings))
