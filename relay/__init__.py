"""The relay: publishes outbox rows to Redis streams. Run it with `outbox relay`, or in a program with `relay.Relay`."""

from relay.service import Relay

__all__ = ["Relay"]
