"""`outbox dev MODULE:APP`: everything that a developer's handlers need."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console import options
from console.commands.worker import Target, check_form
from console.listing import note

if TYPE_CHECKING:
    from console.dev import Folder

USAGE = 2


def dev(
    target: Target,
    reload: Annotated[
        bool, typer.Option("--reload/--no-reload", help="Start the worker again when a Python file changes.")
    ] = True,
    reload_dir: Annotated[
        list[Path] | None,
        typer.Option("--reload-dir", metavar="DIR", help="Watch this folder instead of the working directory."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", min=1, max=65_535, help="Valkey's port; else that of the last run, a free one at first."
        ),
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Delete the data of the embedded servers first.")] = False,
    yes: options.Yes = False,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", "-c", min=1, help="Handlers that run at a time.")
    ] = None,
    database_url: options.DatabaseUrl = None,
    redis_url: options.RedisUrl = None,
    schema: options.Schema = None,
    prefix: options.Prefix = None,
    log_level: options.LogLevel = None,
    log_format: options.LogFormat = None,
) -> None:
    """Develop handlers: PostgreSQL, Valkey, migrations, a relay and a worker that follows the code, until Ctrl-C.

    The servers keep their data in `.outbox`; a server whose address is set is used instead of the embedded one. What
    other shells need is printed on stdout, the log on stderr.

    \b
    outbox dev shop.tasks:app
    outbox dev shop.tasks:app --reset
    """
    check_form(target)
    settings = options.settings(
        database_url=database_url,
        redis_url=redis_url,
        schema_name=schema,
        prefix=prefix,
        log_level=log_level,
        log_format=log_format,
    )
    for place in reload_dir or []:
        if not place.is_dir():
            raise typer.BadParameter(f"--reload-dir: there is no folder {place}")
    from console.dev import Development, Folder, RunsAlreadyError, addresses
    from console.dev.log import Log, form_for
    from workers.loading import check_target

    check_target(target)
    log = Log(sys.stderr, form_for(sys.stderr, settings.log_format))
    watched = [place.absolute() for place in reload_dir or [Path.cwd()]] if reload else []
    try:
        with Folder(Path.cwd()) as folder:
            found = addresses.resolve(settings, folder, port)
            if absent := found.missing(reload=reload):
                they = f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'}"
                _refuse(f"{they} not installed; this needs: pip install 'transactional-outbox[cli,embedded]'")
            if reset:
                _reset(folder, yes)
            status = Development(target, found, folder, log, reload=watched, concurrency=concurrency).run()
    except RunsAlreadyError as error:
        _refuse(str(error))
    raise typer.Exit(status)


def _reset(folder: Folder, yes: bool) -> None:
    if not folder.has_data:
        return
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise typer.BadParameter("--reset deletes data, and there is nobody to ask: add --yes")
        typer.confirm(f"Delete all events and tables in {folder.path}?", abort=True, err=True)
    folder.reset()


def _refuse(why: str) -> None:
    note(f"outbox: {why}")
    raise typer.Exit(USAGE)
