"""Settings of every process: argument > flag > environment (`OUTBOX_…`) > `.env`."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, PlainSerializer, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from outbox.errors import ConfigurationError
from outbox.names import check_prefix, check_schema


def redact(url: str) -> str:
    """A URL without its password, fit for logs and errors.

    >>> redact("postgresql://app:secret@db/shop")
    'postgresql://app:***@db/shop'
    """
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    credentials, _, place = parts.netloc.rpartition("@")
    user, colon, password = credentials.partition(":")
    shown = f"{user}:***" if colon and password else credentials
    return urlunsplit(parts._replace(netloc=f"{shown}@{place}", query=_redact_query(parts.query)))


def _redact_query(query: str) -> str:
    return "&".join("password=***" if part.startswith("password=") else part for part in query.split("&"))


Url = Annotated[SecretStr, PlainSerializer(lambda secret: redact(secret.get_secret_value()), return_type=str)]


class Settings(BaseSettings):
    """What a relay, a worker or a command needs to know. Every field is also an environment variable.

    >>> Settings(database_url="postgresql:///shop", redis_url="redis://localhost").schema_name
    'outbox'
    """

    model_config = SettingsConfigDict(
        env_prefix="OUTBOX_", env_file=".env", extra="ignore", populate_by_name=True, frozen=True
    )

    database_url: Url | None = None
    """PostgreSQL, as a libpq or SQLAlchemy URL."""
    relay_database_url: Url | None = None
    """A direct connection for the relay when `database_url` goes through a transaction pooler."""
    redis_url: Url = SecretStr("redis://127.0.0.1:6379/0")
    schema_name: str = Field("outbox", validation_alias="OUTBOX_SCHEMA")
    """PostgreSQL schema of all tables (`OUTBOX_SCHEMA`)."""
    prefix: str = "outbox"
    """How every Redis key begins."""
    log_level: str = "info"
    log_format: str = "auto"
    """`auto` (colours on a terminal, else logfmt), `console`, `logfmt` or `json`."""

    @field_validator("schema_name")
    @classmethod
    def _schema(cls, value: str) -> str:
        return check_schema(value)

    @field_validator("prefix")
    @classmethod
    def _prefix(cls, value: str) -> str:
        return check_prefix(value)

    def libpq_url(self, *, direct: bool = False) -> str:
        """The database's URL as libpq reads it. `direct` prefers `relay_database_url`."""
        secret = (self.relay_database_url if direct else None) or self.database_url
        if secret is None:
            raise ConfigurationError(
                "no database: set OUTBOX_DATABASE_URL (postgresql://user@host/name) or pass --database-url"
            )
        scheme, separator, rest = secret.get_secret_value().partition("://")
        if not separator or scheme.partition("+")[0] not in ("postgresql", "postgres"):
            raise ConfigurationError("OUTBOX_DATABASE_URL must begin with postgresql://")
        return f"postgresql://{rest}"

    def sqlalchemy_url(self) -> str:
        """The database's URL as SQLAlchemy reads it, with the psycopg driver."""
        return self.libpq_url().replace("postgresql://", "postgresql+psycopg://", 1)


def load(**given: Any) -> Settings:
    """Settings from the environment, overridden by every `given` value that is not None."""
    return Settings(**{name: value for name, value in given.items() if value is not None})
