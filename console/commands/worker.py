"""`outbox worker MODULE:APP`: run the handlers."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from console import options

Target = Annotated[str, typer.Argument(metavar="MODULE:APP", help="Where the workers.App is, as shop.tasks:app.")]


def worker(
    target: Target,
    processes: Annotated[int, typer.Option("--processes", "-p", min=1, help="Worker processes.")] = 1,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", "-c", min=1, help="Runs at a time of each handler in each process.")
    ] = None,
    total_concurrency: Annotated[
        int | None, typer.Option("--total-concurrency", min=1, help="Bound for all handlers of a process together.")
    ] = None,
    max_events: Annotated[
        int | None,
        typer.Option(
            "--max-events-per-process",
            min=1,
            help="Replace a process by a new one after about as many events, against memory that grows.",
        ),
    ] = None,
    database_url: options.DatabaseUrl = None,
    redis_url: options.RedisUrl = None,
    schema: options.Schema = None,
    prefix: options.Prefix = None,
    log_level: options.LogLevel = None,
    log_format: options.LogFormat = None,
    metrics_port: options.MetricsPort = None,
    metrics_host: options.MetricsHost = None,
) -> None:
    """Run an application's handlers, until SIGTERM or Ctrl-C.

    The first signal lets what runs come to its end, a second one does not.

    \b
    outbox worker shop.tasks:app
    outbox worker shop.tasks:app --processes 4 --concurrency 50
    """
    check_form(target)
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
    settings.libpq_url()
    # Not before: the settings decide to which schema `outbox`, once imported, writes.
    from outbox import telemetry
    from workers import supervisor

    find_modules_here()
    telemetry.configure(settings.log_level, settings.log_format)
    status = supervisor.run(
        target,
        settings,
        processes=processes,
        concurrency=concurrency,
        max_events=max_events,
        total_concurrency=total_concurrency,
    )
    raise typer.Exit(status)


def check_form(target: str) -> None:
    """What is not of the form MODULE:APP is wrong usage."""
    module, colon, name = target.partition(":")
    if not (module and colon and name):
        raise typer.BadParameter("say where the application is, as MODULE:APP, for example shop.tasks:app")


def find_modules_here() -> None:
    """Let modules of the working directory be imported, after all others: a user's `workers.py` must not hide ours."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
