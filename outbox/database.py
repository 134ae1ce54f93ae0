"""Opening a PostgreSQL connection, with errors that say what to do and never show a password."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from outbox.errors import ConfigurationError, OutboxError, SchemaError

CONNECT_TIMEOUT = 10
"""Seconds until a server that does not answer counts as unreachable."""


class UnreachableError(OutboxError):
    """A server that is needed does not answer, or does not let us in."""


class KnowsDatabase(Protocol):
    """What has the database's address and schema: `outbox.settings.Settings`."""

    @property
    def schema_name(self) -> str: ...

    def libpq_url(self, *, direct: bool = False) -> str: ...


ABSENT = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedColumn)
"""What PostgreSQL says of tables that are not there, or are those of another release."""

Database = str | psycopg.Connection[Any] | KnowsDatabase
"""Where to look: a PostgreSQL URL, an open psycopg connection, or settings."""


def redacted(url: str) -> str:
    """A URL fit for logs and errors: without the password, and with no more of the query than where the server is.

    >>> redacted("postgresql://app:secret@db/shop?password=x")
    'postgresql://app:***@db/shop'
    """
    # Not by urlsplit: libpq takes a password with # or ? in it, which would end the part that is looked at. An abstract
    # socket begins with the only @ that is not before a host.
    head, at, place = url.replace("host=@", "host=%40").rpartition("@")
    shown = re.sub(r"(?<=://)([^:/]*):.*", r"\1:***", head, flags=re.DOTALL)
    address, *query = re.split("[?&]", place)
    kept = "&".join(part for part in query if part.startswith(("host=", "port=")))
    return f"{shown}{at}{address}{'?' if kept else ''}{kept}"


def checked(url: str) -> str:
    """`url` as libpq reads it, else a `ConfigurationError`.

    The error does not quote it: a part of the password may stand where no one expects it.
    """
    scheme, separator, rest = url.partition("://")
    address = f"postgresql://{rest}"
    try:
        urlsplit(address)
        given = conninfo_to_dict(address)
        ports = str(given.get("port", "")).split(",")
        usable = all(not port or port.isdigit() for port in ports) and "@" not in str(given.get("host", ""))[1:]
    except (psycopg.Error, ValueError):
        usable = False
    if not separator or scheme.partition("+")[0] not in ("postgresql", "postgres") or not usable:
        raise ConfigurationError(
            "the database's address is not a URL like postgresql://user@host/name; "
            "special characters in a password must be percent-encoded"
        )
    return address


def connect(url: str, *, application_name: str = "outbox") -> psycopg.Connection[tuple[Any, ...]]:
    """An autocommit connection. `url` may be SQLAlchemy's (`postgresql+psycopg://`).

    Raises `ConfigurationError` for what is no URL, and `UnreachableError` when the server does not let us in.
    """
    address = checked(url)
    given = conninfo_to_dict(address)
    try:
        return psycopg.connect(
            address,
            autocommit=True,
            connect_timeout=int(given.get("connect_timeout") or CONNECT_TIMEOUT),
            application_name=str(given.get("application_name") or application_name),
            # Behind a transaction pooler the next transaction may be another session's.
            prepare_threshold=None,
        )
    except psycopg.OperationalError as error:
        raise UnreachableError(unreachable(address, error)) from None


def unreachable(url: str, error: BaseException) -> str:
    """The message for a PostgreSQL server that cannot be reached."""
    reason = " ".join(str(error).split())
    advice = "check the address and that the server runs"
    if any(sign in reason for sign in ("does not exist", "authentication", "password", "no pg_hba.conf")):
        advice = "check database, user and password in OUTBOX_DATABASE_URL"
    return f"cannot reach PostgreSQL at {redacted(url)}: {reason}; {advice}"


@contextmanager
def opened(database: Database, schema: str | None) -> Iterator[tuple[psycopg.Connection[Any], str]]:
    """A connection to `database` and the schema to use there; a given connection stays open.

    Raises `SchemaError` when the schema's tables are not there.
    """
    try:
        if isinstance(database, psycopg.Connection):
            yield database, schema or "outbox"
        elif isinstance(database, str):
            with connect(database) as connection:
                yield connection, schema or "outbox"
        else:
            with connect(database.libpq_url()) as connection:
                yield connection, schema or database.schema_name
    except ABSENT as error:
        raise SchemaError(missing(error)) from error


def refused(error: BaseException) -> str | None:
    """What somebody has to mend in PostgreSQL before this can go on, in one line; None for any other error.

    >>> refused(SchemaError("the outbox in schema 'outbox' is older: run `outbox migrate`"))
    "the outbox in schema 'outbox' is older: run `outbox migrate`"
    """
    if isinstance(error, SchemaError):
        return str(error)
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        said = error.diag.message_primary or " ".join(str(error).split())
        return f"PostgreSQL: {said}; `outbox migrate --roles-sql` prints what each role needs"
    return missing(error) if isinstance(error, ABSENT) else None


def missing(error: psycopg.Error) -> str:
    """The message for a schema that is absent or of another release."""
    return f"{error.diag.message_primary}: the outbox schema is absent or older; run `outbox migrate`"
