"""Every check there is, in the order in which they are made and shown; `docs/doctor.md` lists them too."""

from __future__ import annotations

from console.doctor import clocks, database, progress, sessions, store
from console.doctor.finding import Check

POSTGRESQL, REDIS, SCHEMA = "postgresql", "redis", "schema"

CHECKS = (
    Check(
        POSTGRESQL,
        "PostgreSQL answers and can be written",
        "check OUTBOX_DATABASE_URL and that the server runs",
        database.postgresql,
    ),
    Check(
        "postgresql-version",
        "it is supported, and no hole of its release is known",
        "upgrade PostgreSQL",
        database.version,
    ),
    Check(
        SCHEMA,
        "the schema is what the migrations make, and nothing was changed by hand",
        "`outbox migrate` as the owner; `outbox migrate --check` lists every difference",
        database.schema,
        (POSTGRESQL, SCHEMA),
    ),
    Check(
        "roles",
        "the roles of relays and workers at work, and whoever asks, have their grants",
        "run what `outbox migrate --roles-sql` prints for it, as the owner",
        database.roles,
        (POSTGRESQL, SCHEMA),
    ),
    Check(
        "partitions",
        "there is a partition for today and every day of the week to come",
        "`outbox upkeep` as the owner, daily, if the relay's role does not own the tables",
        database.partitions,
        (POSTGRESQL, SCHEMA),
    ),
    Check(
        "default-partitions",
        "no rows are in the default partitions, where retention does not reach",
        "`outbox upkeep` as the owner; `--may-block 5` if there are many",
        database.default_partitions,
        (POSTGRESQL, SCHEMA),
    ),
    Check(
        "ticks",
        "ticks are thinned",
        "find the handler that lags most (`outbox status`) and start or forget it; then `outbox upkeep`",
        database.ticks,
        (POSTGRESQL, SCHEMA),
    ),
    Check(
        "counters",
        "no sequence is near its end, and no transaction id near wraparound",
        "find what draws numbers by the billion: a hand moved this sequence",
        database.counters,
        (POSTGRESQL, SCHEMA),
    ),
    Check(
        "transactions",
        "no transaction is open for long, in any database",
        "end it in its program, or `SELECT pg_terminate_backend(PROCESS)`; set idle_in_transaction_session_timeout",
        sessions.transactions,
    ),
    Check(
        "prepared",
        "no prepared transaction is left, in any database",
        "`COMMIT PREPARED` or `ROLLBACK PREPARED` it, connected to its database",
        sessions.prepared,
    ),
    Check(
        "pooler",
        "no pooler stands between the relay and PostgreSQL",
        "set OUTBOX_RELAY_DATABASE_URL to the server itself",
        sessions.pooler,
        (POSTGRESQL, SCHEMA),
    ),
    Check(
        "listen",
        "a notification arrives on a connection like the relay's",
        "set OUTBOX_RELAY_DATABASE_URL to the server itself, not to a pooler",
        sessions.listen,
    ),
    Check(
        "relay",
        "a relay leads, and no committed event waits for it",
        "start `outbox relay`, two of them for a standby",
        progress.relay,
        (POSTGRESQL, SCHEMA),
    ),
    Check(
        "paused",
        "nothing is held back by hand",
        "`outbox resume handler NAME`, when that is over",
        progress.paused,
        (POSTGRESQL, SCHEMA),
    ),
    Check(
        "handlers",
        "a worker serves every handler that is known",
        "start its worker; if it was removed from the code, `outbox forget NAME`",
        progress.handlers,
        (POSTGRESQL, SCHEMA),
    ),
    Check(
        "names",
        "every event has a handler: without one it is dropped after its retention",
        "start the worker that has the handler; or stop adding these events, or correct their name",
        progress.unhandled,
        (POSTGRESQL, SCHEMA),
    ),
    Check(
        "retries",
        "retries do not pile up, and each has a handler",
        "`outbox events --handler NAME` shows the errors; `outbox pause handler NAME` while what it calls is down",
        progress.retries,
        (POSTGRESQL, SCHEMA),
    ),
    Check(
        "dead",
        "there are no dead letters",
        "`outbox dead --groups`, then `outbox replay` or `outbox discard`",
        progress.dead,
        (POSTGRESQL, SCHEMA),
    ),
    Check(
        REDIS,
        "Redis answers and can be written",
        "check OUTBOX_REDIS_URL and that the server runs; meanwhile events wait in PostgreSQL",
        store.redis,
        (REDIS,),
    ),
    Check(
        "redis-version", "it is supported, and no hole of its release is known", "upgrade it", store.version, (REDIS,)
    ),
    Check(
        "eviction",
        "Redis drops no streams when its memory is full",
        "set maxmemory-policy to noeviction",
        store.eviction,
        (REDIS,),
    ),
    Check(
        "memory",
        "Redis has room",
        "raise maxmemory or move other data away: when it is full nothing is published",
        store.memory,
        (REDIS,),
    ),
    Check(
        "persistence",
        "Redis can write its files",
        "nothing; `appendonly yes` makes recovery quicker",
        store.persistence,
        (REDIS,),
    ),
    Check(
        "clocks",
        "PostgreSQL, Redis and this machine show the same time",
        "synchronise the clocks (NTP): ids of stream entries and times in logs are by them",
        clocks.clocks,
        (POSTGRESQL, REDIS),
    ),
    Check(
        "prefix",
        "the Redis keys are this installation's",
        "choose another OUTBOX_PREFIX or another Redis",
        store.prefix,
        (POSTGRESQL, REDIS),
    ),
    Check(
        "groups",
        "every group in Redis is a known handler's",
        "`outbox forget` leaves none behind; of one that was made by hand: XGROUP DESTROY",
        store.groups,
        (POSTGRESQL, SCHEMA, REDIS),
    ),
    Check(
        "streams",
        "no stream is at its limit",
        "start or help the handler that lags (`outbox status`); it is fed from PostgreSQL, and loses nothing",
        store.streams,
        (POSTGRESQL, SCHEMA, REDIS),
    ),
)
