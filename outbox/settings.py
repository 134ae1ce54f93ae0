"""Settings of every process: argument > flag > environment (`OUTBOX_…`) > `.env`."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from pydantic import Field, PlainSerializer, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from outbox.address import parse
from outbox.database import checked, redacted
from outbox.errors import ConfigurationError
from outbox.names import check_prefix, check_schema

Url = Annotated[SecretStr, PlainSerializer(lambda secret: redacted(secret.get_secret_value()), return_type=str)]


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
    """Redis or Valkey: one server, `redis+sentinel://` or `redis+cluster://`; `docs/redis.md` says how."""
    schema_name: str = Field("outbox", validation_alias="OUTBOX_SCHEMA")
    """PostgreSQL schema of all tables (`OUTBOX_SCHEMA`)."""
    prefix: str = "outbox"
    """How every Redis key begins."""
    retention: timedelta = timedelta(days=7)
    """How long events are kept at least: days as `7d`, hours as `36:00:00`. The relay makes and drops partitions."""
    log_level: str = "info"
    log_format: str = "auto"
    """`auto` (colours on a terminal, else json), `console`, `logfmt` or `json`."""

    standstill: float = Field(30.0, ge=0, allow_inf_nan=False)
    """Seconds after which a worker process whose event loop stands still is ended; 0 is never, for a debugger."""

    metrics_port: int | None = Field(None, ge=0, le=65_535)
    """Where relay and worker serve `/metrics`, `/livez` and `/readyz`; 0 is a free port, nothing is off."""
    metrics_host: str = "127.0.0.1"
    """Address that is listened on; `0.0.0.0` in a container."""

    @field_validator("metrics_port", mode="before")
    @classmethod
    def _metrics_port(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("schema_name")
    @classmethod
    def _schema(cls, value: str) -> str:
        return check_schema(value)

    @field_validator("prefix")
    @classmethod
    def _prefix(cls, value: str) -> str:
        return check_prefix(value)

    @field_validator("retention")
    @classmethod
    def _retention(cls, value: timedelta) -> timedelta:
        if not timedelta(hours=1) <= value <= timedelta(days=36_500):
            raise ValueError("keep events for at least an hour (01:00:00) and at most 36500d")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_url(cls, value: SecretStr) -> SecretStr:
        try:
            parse(value.get_secret_value())
        except ValueError:
            # Without quoting it: a part of the password may stand where no one expects it.
            raise ValueError(
                "not a URL like redis://user:password@host:6379/0, redis+sentinel://host,host/service or"
                " redis+cluster://host,host; special characters in a password must be percent-encoded"
            ) from None
        return value

    def libpq_url(self, *, direct: bool = False) -> str:
        """The database's URL as libpq reads it. `direct` prefers `relay_database_url`.

        Raises `ConfigurationError` when there is none, or none that can be used.
        """
        secret = (self.relay_database_url if direct else None) or self.database_url
        if secret is None:
            raise ConfigurationError(
                "no database: set OUTBOX_DATABASE_URL (postgresql://user@host/name) or pass --database-url"
            )
        return checked(secret.get_secret_value())

    def sqlalchemy_url(self) -> str:
        """The database's URL as SQLAlchemy reads it, with the psycopg driver."""
        return self.libpq_url().replace("postgresql://", "postgresql+psycopg://", 1)


def load(**given: Any) -> Settings:
    """Settings from the environment, overridden by every `given` value that is not None."""
    return Settings(**{name: value for name, value in given.items() if value is not None})
