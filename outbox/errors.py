"""Every error this project raises on purpose. All derive from `OutboxError`."""

from __future__ import annotations


class OutboxError(Exception):
    """Root of all errors raised by outbox, relay and workers."""


class PayloadError(OutboxError, ValueError):
    """A payload, name, key, id or header that cannot be stored faithfully. Nothing was written.

    `path` says where in the payload the value stands, as `$.items[3].price`; None if it concerns the whole event.
    """

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class ConfigurationError(OutboxError):
    """What was given is missing or wrong: a setting, an argument, an application. Waiting does not mend it."""


class UnusableError(OutboxError):
    """What is needed is there and cannot be used as it is: a standby server, one too old, a port that is taken."""


class SchemaError(OutboxError):
    """The database's outbox schema is absent, older or other than this release expects. Run `outbox migrate`."""


class PrefixTakenError(UnusableError):
    """The Redis key prefix belongs to another database or schema. Choose another `OUTBOX_PREFIX`."""


class LeadershipLostError(OutboxError):
    """This relay no longer holds the leader's lock and must stop writing."""


class TargetError(OutboxError, TypeError):
    """An event was added to something that is not a session or connection that can take it."""


class UnknownError(OutboxError, LookupError):
    """A handler, event or dead letter that was named and that there is none of. Nothing was changed."""


class InUseError(OutboxError):
    """What was to be removed or renamed is being used. Nothing was changed."""


class NotYetSupportedError(OutboxError, NotImplementedError):
    """An option that is named already but not built yet. Nothing was written."""
