"""The tables of the outbox schema for SQLAlchemy: for queries, and so that Alembic knows them.

`outbox migrate` makes the schema; it also holds functions, a trigger and partitions, which Alembic cannot write. What
Alembic needs is to leave all of it alone. In `env.py`:

>>> context.configure(
...     target_metadata=[Base.metadata, outbox.metadata],
...     include_schemas=True,
...     include_name=outbox.schema.include_name,
... )

Storage parameters are left to the migrations. The schema's name is read from `OUTBOX_SCHEMA` when this module is
imported; the default is `outbox`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    MetaData,
    Sequence,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.types import UserDefinedType

from outbox.names import check_schema

SCHEMA = check_schema(os.environ.get("OUTBOX_SCHEMA") or "outbox")
"""PostgreSQL schema of all tables."""

metadata = MetaData(schema=SCHEMA)
"""All tables of the outbox schema."""


class Xid8(UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "xid8"


class PgSnapshot(UserDefinedType[str]):
    """PostgreSQL's `pg_snapshot`."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "pg_snapshot"


# Without these, every reflection of the schema (by Alembic, say) warns of unknown types.
ischema_names.setdefault("xid8", Xid8)
ischema_names.setdefault("pg_snapshot", PgSnapshot)

_Moment = DateTime(timezone=True)
_NOW = text("clock_timestamp()")
_UUIDV7 = text(f"{SCHEMA}.uuidv7()")
_NAME_CHECK = "{0} <> '' AND length({0}) <= 128"

event_seq = Sequence("event_seq", metadata=metadata, schema=SCHEMA)

event = Table(
    "event",
    metadata,
    Column("id", Uuid, primary_key=True, server_default=_UUIDV7),
    Column("created_at", _Moment, primary_key=True, server_default=_NOW),
    # Without ::regclass, which Alembic takes off before it compares.
    Column("seq", BigInteger, nullable=False, server_default=text(f"nextval('{SCHEMA}.event_seq')")),
    Column("xid", Xid8, nullable=False, server_default=text("pg_current_xact_id()")),
    Column("name", Text, nullable=False),
    Column("key", Text),
    Column("payload", JSON(none_as_null=True), nullable=False),
    Column("headers", JSON(none_as_null=True)),
    CheckConstraint(_NAME_CHECK.format("name")),
    Index("event_xid", "xid"),
    postgresql_partition_by="RANGE (created_at)",
    # RETURNING would ask for the right to read, which a writer does not have.
    implicit_returning=False,
)

tick = Table(
    "tick",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("snapshot", PgSnapshot, nullable=False),
    Column("created_at", _Moment, nullable=False, server_default=_NOW),
    Column("count", BigInteger, comment="events in the batch; null until it is published"),
)

relay = Table(
    "relay",
    metadata,
    Column("id", SmallInteger, CheckConstraint("id = 1"), primary_key=True, server_default=text("1")),
    Column("tick", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("system_identifier", Text, nullable=False),
    Column("leader", Text),
    Column("heartbeat", _Moment),
    Column(
        "backend_pid",
        Integer,
        comment="the session that the leader takes for its own: where a pooler stands between, "
        "another one holds the lock",
    ),
    Column(
        "retained_from",
        _Moment,
        comment="deliveries of events that were added before may be gone with their partition",
    ),
)

stream = Table(
    "stream",
    metadata,
    Column("name", Text, primary_key=True),
    Column("tick", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
)

handler = Table(
    "handler",
    metadata,
    Column("name", Text, CheckConstraint(_NAME_CHECK.format("name")), primary_key=True),
    Column("event_name", Text, nullable=False),
    Column("attached", Boolean, nullable=False, server_default=text("false")),
    Column(
        "done_tick",
        BigInteger,
        comment="with done_seq: below and at this position every event has an outcome here; "
        "null until the relay admits the handler",
    ),
    Column("done_seq", BigInteger),
    Column(
        "fed_tick",
        BigInteger,
        comment="with fed_seq: position of the catch-up feed; null when the handler is attached or not admitted yet",
    ),
    Column("fed_seq", BigInteger),
    Column("registered_at", _Moment, nullable=False, server_default=_NOW),
    Column("last_seen", _Moment, nullable=False, server_default=_NOW),
    Column(
        "start_at",
        _Moment,
        comment="begins with what was added from then on: -infinity is all that is retained, infinity its "
        "registration; null lets the relay decide",
    ),
    CheckConstraint("(done_tick IS NULL) = (done_seq IS NULL)"),
    CheckConstraint("(fed_tick IS NULL) = (fed_seq IS NULL)"),
    Index("handler_event_name", "event_name"),
)

delivery = Table(
    "delivery",
    metadata,
    Column("event_id", Uuid, primary_key=True),
    Column("handler", Text, primary_key=True),
    Column("event_created_at", _Moment, primary_key=True),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("crashes", Integer, nullable=False, server_default=text("0")),
    Column("replays", Integer, nullable=False, server_default=text("0")),
    Column("due_at", _Moment, comment="when to try again; while a worker holds the lease, when that ends"),
    Column("lease", Uuid),
    Column("error", Text),
    Column("updated_at", _Moment, nullable=False, server_default=_NOW),
    Column(
        "failures",
        JSONB,
        comment='the last ten attempts that failed: [{"attempt": 1, "at": time, "error": text}]; attempt 0'
        " is a replay, and its text says who, why and what was before",
    ),
    Column(
        "result",
        JSON(none_as_null=True),
        comment="what the handler returned when it was done, if anything: at most 8 KiB",
    ),
    Column(
        "begun",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="its run began under this lease; kept only after a first crash",
    ),
    CheckConstraint("state IN ('done', 'retrying', 'dead', 'cancelled')", name="delivery_state_check"),
    CheckConstraint("(due_at IS NOT NULL) = (state = 'retrying')"),
    CheckConstraint("lease IS NULL OR state = 'retrying'"),
    Index("delivery_due", "handler", "due_at", postgresql_where=text("state = 'retrying'")),
    postgresql_partition_by="RANGE (event_created_at)",
)

dead_letter = Table(
    "dead_letter",
    metadata,
    Column("event_id", Uuid, primary_key=True),
    Column("handler", Text, primary_key=True),
    Column("event_created_at", _Moment, nullable=False),
    Column("name", Text, nullable=False),
    Column("key", Text),
    Column("payload", JSON, nullable=False),
    Column("headers", JSON),
    Column("attempts", Integer, nullable=False),
    Column("error", Text, nullable=False),
    Column("died_at", _Moment, nullable=False, server_default=_NOW),
    Column("replayed_at", _Moment),
    Column(
        "traceback",
        Text,
        comment="the last error with its causes and their innermost frames; null when no run of the handler raised one",
    ),
    Index("dead_letter_died_at", "died_at", postgresql_where=text("replayed_at IS NULL")),
    Index("dead_letter_handler", "handler", "died_at", postgresql_where=text("replayed_at IS NULL")),
)

worker = Table(
    "worker",
    metadata,
    Column("name", Text, primary_key=True),
    Column("handlers", ARRAY(Text), nullable=False),
    Column("started_at", _Moment, nullable=False, server_default=_NOW),
    Column("seen_at", _Moment, nullable=False, server_default=_NOW),
)

scheduled = Table(
    "scheduled",
    metadata,
    Column("id", Uuid, primary_key=True, server_default=_UUIDV7),
    Column("due_at", _Moment, nullable=False),
    Column("name", Text, CheckConstraint(_NAME_CHECK.format("name")), nullable=False),
    Column("key", Text),
    Column("payload", JSON, nullable=False),
    Column("headers", JSON),
    Column("created_at", _Moment, nullable=False, server_default=_NOW),
    Index("scheduled_due_at", "due_at"),
)

schedule = Table(
    "schedule",
    metadata,
    Column("name", Text, primary_key=True),
    Column("cron", Text, nullable=False),
    Column("timezone", Text, nullable=False, server_default=text("'UTC'::text")),
    Column("event_name", Text, CheckConstraint(_NAME_CHECK.format("event_name")), nullable=False),
    Column("payload", JSON, nullable=False),
    Column("headers", JSON),
    Column("next_at", _Moment, nullable=False),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
)

hold = Table(
    "hold",
    metadata,
    Column("what", Text, CheckConstraint("what IN ('handler', 'event', 'relay')"), primary_key=True),
    Column(
        "name",
        Text,
        primary_key=True,
        comment="of the handler, or of the event: then all of its handlers rest; empty for the relay",
    ),
    Column("since", _Moment, nullable=False, server_default=_NOW),
    Column("actor", Text, nullable=False),
    Column("reason", Text),
)

replay = Table(
    "replay",
    metadata,
    Column(
        "known_as",
        Text,
        primary_key=True,
        comment="a hash of what was asked for; no payload, no key. The row total has in count how many deliveries were"
        " ever put back",
    ),
    Column("actor", Text, nullable=False),
    Column("began_at", _Moment, nullable=False, server_default=_NOW),
    Column("since", _Moment),
    Column("until", _Moment),
    Column("asked", BigInteger, nullable=False),
    Column("count", BigInteger, nullable=False, server_default=text("0")),
    Column("place_at", _Moment),
    Column("place_id", Uuid, comment="with place_at and place_handler: the last delivery that it has dealt with"),
    Column("place_handler", Text),
)

tombstone = Table(
    "tombstone",
    metadata,
    Column("event_id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("purged_at", _Moment, nullable=False, server_default=_NOW),
    Index("tombstone_purged_at", "purged_at"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("at", _Moment, nullable=False, server_default=_NOW),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("reason", Text),
    Column("detail", JSON, nullable=False),
)


def include_name(name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
    """Alembic's `include_name` hook: False for what lives in the outbox schema and is not in `metadata` (partitions,
    which come and go, and the table of applied migrations), True for everything else.

    With `include_schemas=True` Alembic looks at every schema of the database; to keep it to yours, call this from a
    hook that also answers for `type_ == "schema"`.

    >>> include_name("event_p20260131", "table", {"schema_name": "outbox"})
    False
    """
    if type_ != "table" or parent_names.get("schema_name") != SCHEMA:
        return True
    return f"{SCHEMA}.{name}" in metadata.tables
