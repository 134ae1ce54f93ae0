"""Versioned migrations of the outbox schema: numbered SQL files in this folder, each applied in one transaction."""

from outbox.migrations.drift import Check, Difference, check
from outbox.migrations.migrate import apply, pending, printed
from outbox.migrations.roles import roles_sql
from outbox.migrations.script import Script, scripts

__all__ = ["Check", "Difference", "Script", "apply", "check", "pending", "printed", "roles_sql", "scripts"]
