"""What a relay counts of its own work: plain numbers, once a batch or wake-up. `monitoring` shows them."""

from __future__ import annotations

from collections import Counter

from outbox.tally import EVENTS, SECONDS, Histogram


class Measures:
    """Written by the relay's thread, read by others."""

    def __init__(self) -> None:
        self.leading = False
        self.listening = False
        """As the leader, in a session that LISTENs and has no pooler before it."""
        self.published: Counter[str] = Counter()
        """Events on main streams, by event name."""
        self.fed: Counter[str] = Counter()
        """Events on catch-up streams, by handler."""
        self.batch_events = Histogram(EVENTS)
        self.publish_seconds = Histogram(SECONDS)
        """From a batch's tick to its bookmark."""

    def batch(self, events: int, seconds: float) -> None:
        """A batch is published."""
        self.batch_events.observe(events)
        self.publish_seconds.observe(seconds)
