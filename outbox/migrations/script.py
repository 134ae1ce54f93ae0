"""The migrations' texts: read from this folder, with the schema's name filled in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from outbox.names import check_schema


@dataclass(frozen=True)
class Script:
    """One migration: `version` from its file name, `sql` for one schema, `checksum` of the text for any schema."""

    version: int
    name: str
    sql: str
    checksum: str

    @property
    def title(self) -> str:
        """How it is shown: `0001_initial`."""
        return f"{self.version:04}_{self.name}"


def text(file_name: str, schema: str) -> str:
    """An SQL file of this folder for a schema. Raises `ConfigurationError` for a name that is no plain identifier."""
    return (files(__package__) / file_name).read_text("utf-8").replace("{schema}", check_schema(schema))


def scripts(schema: str = "outbox") -> tuple[Script, ...]:
    """Every migration of this release, in the order in which they are applied.

    >>> [script.title for script in scripts()]
    ['0001_initial', '0002_retention', '0003_start']
    """
    found = sorted(file.name for file in files(__package__).iterdir() if file.name[:4].isdigit())
    return tuple(_read(file_name, schema) for file_name in found)


def latest() -> int:
    """The number of this release's last migration."""
    return scripts()[-1].version


def _read(file_name: str, schema: str) -> Script:
    raw = (files(__package__) / file_name).read_bytes()
    version, _, name = file_name.removesuffix(".sql").partition("_")
    return Script(int(version), name, text(file_name, schema), hashlib.sha256(raw).hexdigest())
