"""Looking after an outbox: how far everything is, what failed, and running it again."""

from outbox.admin.cancelling import Cancellation, cancel
from outbox.admin.events import Delivery, LoggedEvent, events
from outbox.admin.hold import Hold, holds, pause, resume
from outbox.admin.letters import DeadLetter, ErrorGroup, count_dead_letters, dead_letters, error_groups
from outbox.admin.replaying import Replayed, replay
from outbox.admin.selection import PayloadField, Selection
from outbox.admin.state import LOOK_AT, Count, HandlerStatus, Leader, Status, status

__all__ = [
    "LOOK_AT",
    "Cancellation",
    "Count",
    "DeadLetter",
    "Delivery",
    "ErrorGroup",
    "HandlerStatus",
    "Hold",
    "Leader",
    "LoggedEvent",
    "PayloadField",
    "Replayed",
    "Selection",
    "Status",
    "cancel",
    "count_dead_letters",
    "dead_letters",
    "error_groups",
    "events",
    "holds",
    "pause",
    "replay",
    "resume",
    "status",
]
