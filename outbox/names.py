"""Names of everything that processes share: Redis keys, NOTIFY channel, advisory locks; and what a name may be."""

from __future__ import annotations

import hashlib
import re

from outbox.errors import ConfigurationError, PayloadError

MAX_NAME_LENGTH = 128
"""Characters in the name of an event or handler."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.:/-]*\Z")
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,39}\Z")
# What PostgreSQL 18 takes as a name only in quotation marks, or prints in them.
_RESERVED = frozenset(
    """
    all analyse analyze and any array as asc asymmetric authorization between bigint binary bit boolean both case cast
    char character check coalesce collate collation column concurrently constraint create cross current_catalog
    current_date current_role current_schema current_time current_timestamp current_user dec decimal default
    deferrable desc distinct do else end except exists extract false fetch float for foreign freeze from full grant
    greatest group grouping having ilike in initially inner inout int integer intersect interval into is isnull join
    json json_array json_arrayagg json_exists json_object json_objectagg json_query json_scalar json_serialize
    json_table json_value lateral leading least left like limit localtime localtimestamp merge_action national natural
    nchar none normalize not notnull null nullif numeric offset on only or order out outer overlaps overlay placing
    position precision primary real references returning right row select session_user setof similar smallint some
    substring symmetric system_user table tablesample then time timestamp to trailing treat trim true union unique
    user using values varchar variadic verbose when where window with xmlattributes xmlconcat xmlelement xmlexists
    xmlforest xmlnamespaces xmlparse xmlpi xmlroot xmlserialize xmltable
    """.split()  # noqa: SIM905
)
_PREFIX = re.compile(r"[A-Za-z0-9_.-][A-Za-z0-9_.:-]{0,63}\Z")


def check_name(name: object, what: str = "event name") -> str:
    """Return `name` if it may name an event or handler, else raise `PayloadError`.

    A name is 1 to 128 characters: a letter, then letters, digits and `_ . : / -`. Braces are excluded because Redis
    Cluster reads them in keys.
    """
    if not isinstance(name, str):
        raise PayloadError(f"the {what} must be a string, not {type(name).__name__}")
    if len(name) > MAX_NAME_LENGTH or not _NAME.match(name):
        raise PayloadError(
            f"invalid {what} {name[:40]!r}: use 1 to {MAX_NAME_LENGTH} characters, a letter first, "
            "then letters, digits and _ . : / -"
        )
    # A member of a StrEnum is a string too, and stays one when it is formatted.
    return name if type(name) is str else str.__str__(name)


def check_schema(schema: str) -> str:
    """Return `schema` if it is a plain PostgreSQL identifier for a schema of our own, else `ConfigurationError`."""
    if not _SCHEMA.match(schema):
        raise ConfigurationError(
            f"invalid schema name {schema!r}: use at most 40 lower-case letters, digits and underscores, no digit first"
        )
    if schema in _RESERVED or schema.startswith("pg_"):
        raise ConfigurationError(f"invalid schema name {schema!r}: PostgreSQL reserves it")
    if schema in ("public", "information_schema"):
        raise ConfigurationError(f"invalid schema name {schema!r}: the outbox needs a schema of its own")
    return schema


def check_prefix(prefix: str) -> str:
    """Return `prefix` if it can begin Redis keys, else raise `ConfigurationError`."""
    if not _PREFIX.match(prefix):
        raise ConfigurationError(f"invalid Redis key prefix {prefix!r}: use at most 64 letters, digits and _ . : -")
    return prefix


def stream_key(prefix: str, event_name: str) -> str:
    """The Redis stream of an event name. The braces put it in one cluster slot with its handlers' catch-up streams."""
    return f"{prefix}:{{{event_name}}}"


def catch_up_key(prefix: str, event_name: str, handler: str) -> str:
    """The Redis stream that feeds one detached handler."""
    return f"{prefix}:{{{event_name}}}:{handler}"


def owner_key(prefix: str) -> str:
    """The marker that says which database and schema a prefix belongs to."""
    return f"{prefix}:owner"


def leader_key(prefix: str) -> str:
    """Names the same while a relay leads, and a little longer."""
    return f"{prefix}:leader"


def channel(schema: str) -> str:
    """The NOTIFY channel that wakes the relay."""
    return schema


def lock_id(role: str, schema: str) -> int:
    """A stable 64-bit advisory lock id for a role (`relay`, `migrate`) within a schema."""
    digest = hashlib.sha256(f"outbox/{role}/{schema}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
