"""`outbox migrate`: bring the schema up to date, print its SQL, or check it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from console import options
from console.listing import Form, Output, note, say, show_object


def migrate(
    sql: Annotated[bool, typer.Option("--sql", help="Print all migrations as one script; needs no database.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit 1 if the schema is behind or was changed by hand.")
    ] = False,
    roles_sql: Annotated[
        bool,
        typer.Option("--roles-sql", help="Print the grants for --writer, --relay, --worker and --reader."),
    ] = False,
    writer: Annotated[
        str | None, typer.Option(metavar="ROLE", help="Role of the application that adds events.")
    ] = None,
    relay: Annotated[str | None, typer.Option(metavar="ROLE", help="Role of `outbox relay`.")] = None,
    worker: Annotated[
        str | None, typer.Option(metavar="ROLE", help="Role of `outbox worker`, status and replay.")
    ] = None,
    reader: Annotated[
        str | None, typer.Option(metavar="ROLE", help="Role of whoever only looks: outbox.status, status, top.")
    ] = None,
    without_trigger: Annotated[
        bool,
        typer.Option(
            "--without-trigger", help="Leave out the trigger that wakes the relay (two-phase commit needs that)."
        ),
    ] = False,
    dry_run: options.DryRun = False,
    output: Output = Form.TABLE,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
) -> None:
    """Create the outbox's tables, or bring them up to date.

    Safe to run again, and by several at once. Run it as the schema's owner.

    \b
    outbox migrate
    outbox migrate --check
    outbox migrate --sql > outbox.sql
    outbox migrate --roles-sql --writer shop --relay shop_relay --worker shop_worker
    """
    if sum((sql, check, roles_sql, dry_run)) > 1:
        raise typer.BadParameter("use one of --sql, --check, --roles-sql and --dry-run")
    if roles_sql and not (writer or relay or worker or reader):
        raise typer.BadParameter("--roles-sql needs at least one of --writer, --relay, --worker and --reader")
    if not roles_sql and (writer or relay or worker or reader):
        raise typer.BadParameter("--writer, --relay, --worker and --reader go with --roles-sql")
    from outbox import migrations

    settings = options.settings(database_url=database_url, schema_name=schema)
    name, trigger = settings.schema_name, not without_trigger
    if sql:
        sys.stdout.write(migrations.printed(name, trigger=trigger))
    elif roles_sql:
        sys.stdout.write(migrations.roles_sql(name, writer=writer, relay=relay, worker=worker, reader=reader))
    elif check:
        _check(settings.libpq_url(direct=True), name, trigger, output)
    elif dry_run:
        pending = [script.title for script in migrations.pending(settings.libpq_url(direct=True), name)]
        _report({"schema": name, "pending": pending}, output, "would apply " + (", ".join(pending) or "nothing"))
    else:
        applied = migrations.apply(settings.libpq_url(direct=True), name, trigger=trigger, progress=note)
        said = f"schema {name} is up to date ({len(applied)} migration{'' if len(applied) == 1 else 's'} applied)"
        _report({"schema": name, "applied": applied}, output, said)


def _check(url: str, schema: str, trigger: bool, form: Form) -> None:
    from outbox import migrations

    found = migrations.check(url, schema, trigger=trigger)
    facts = {
        "schema": schema,
        "ok": found.ok,
        "pending": found.pending,
        "unknown": found.unknown,
        "edited": found.edited,
        "differences": [vars(difference) for difference in found.differences],
    }
    said = f"schema {schema} is as it should be" if found.ok else "\n".join(found.lines())
    _report(facts, form, said)
    if not found.ok:
        note("run `outbox migrate`" if found.pending else "the schema is not what this release makes")
        raise typer.Exit(1)


def _report(facts: dict[str, object], form: Form, said: str) -> None:
    if form is Form.TABLE:
        say(said)
    else:
        show_object(facts, form)
