"""Making this worker's handlers known, and refusing a Redis prefix that belongs to another database."""

from __future__ import annotations

from contextlib import suppress

from outbox.errors import ConfigurationError, PrefixTakenError
from outbox.migrations.script import latest
from outbox.names import channel, owner_key
from outbox.settings import Settings
from workers.database import Database, Unreachable
from workers.handler import Handler
from workers.link import Servers


async def unfit(database: Database, settings: Settings) -> str | None:
    """What is wrong with the schema and what to do; None when it will do."""
    rows = await database.query("SELECT to_regclass(%(table)s)", {"table": f"{settings.schema_name}.delivery"})
    if rows[0][0] is None:
        return f"the database has no schema {settings.schema_name!r} of ours: run `outbox migrate` first"
    rows = await database.query(f"SELECT coalesce(max(version), 0) FROM {settings.schema_name}.migration", {})
    older = rows[0][0] < latest()
    return (
        f"the outbox in schema {settings.schema_name!r} is of an older release: run `outbox migrate`" if older else None
    )


async def register(database: Database, handlers: list[Handler], schema: str) -> None:
    """Upsert the handlers' rows, all at once so that those of one event begin together, and wake the relay."""
    wanted = {handler.name: handler.event_name for handler in handlers}
    rows = await database.fetch(
        "register",
        {
            "names": list(wanted),
            "event_names": list(wanted.values()),
            "starts": [handler.start_at for handler in handlers],
        },
    )
    for name, event_name in rows:
        if event_name != wanted[name]:
            raise ConfigurationError(
                f"handler {name!r} is registered for event {event_name!r}, not {wanted[name]!r}: give the new one "
                "another name"
            )
    await database.query(f"NOTIFY {channel(schema)}", {})


async def appear(database: Database, worker: str, handlers: list[Handler]) -> None:
    """Let those who look see that this worker lives, for as long as it says so again."""
    await database.fetch("present", {"name": worker, "handlers": sorted(handler.name for handler in handlers)})


async def disappear(database: Database, worker: str, schema: str) -> None:
    """Nobody need wait to see that this worker has gone. Tried once: it must not hold up a stop."""
    with suppress(*Unreachable):
        await database.once(f"DELETE FROM {schema}.worker WHERE name = %(name)s", {"name": worker})


async def owner(database: Database, schema: str) -> str:
    """Who we are, as the prefix's marker says it: system identifier, database and schema."""
    rows = await database.query(
        "SELECT system_identifier::text || '/' || current_database() FROM pg_control_system()", {}
    )
    return f"{rows[0][0]}/{schema}"


async def claim_prefix(servers: Servers, prefix: str, owner: str) -> None:
    """Mark the prefix as ours, or raise `PrefixTakenError`."""
    key = owner_key(prefix)
    redis = servers.at(key)
    if await redis.set(key, owner, nx=True):
        return
    found = await redis.get(key)
    if found is not None and found != owner.encode():
        raise PrefixTakenError(
            f"the Redis prefix {prefix!r} belongs to {found!r}, this worker's database is {owner!r}: "
            "choose another OUTBOX_PREFIX or another Redis database"
        )
