"""Looking after an outbox: how far everything is, what failed, and running it again."""

from outbox.admin.events import Delivery, LoggedEvent, events
from outbox.admin.letters import DeadLetter, Filter, count_dead_letters, dead_letters
from outbox.admin.replaying import Replayed, replay
from outbox.admin.state import LOOK_AT, Count, HandlerStatus, Leader, Status, status

__all__ = [
    "LOOK_AT",
    "Count",
    "DeadLetter",
    "Delivery",
    "Filter",
    "HandlerStatus",
    "Leader",
    "LoggedEvent",
    "Replayed",
    "Status",
    "count_dead_letters",
    "dead_letters",
    "events",
    "replay",
    "status",
]
