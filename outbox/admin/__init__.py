"""Looking after an outbox: how far everything is, what failed, and running it again."""

from outbox.admin.cancelling import Cancellation, cancel
from outbox.admin.discarding import Discarded, discard
from outbox.admin.edit import Edit
from outbox.admin.events import Delivery, LoggedEvent, events
from outbox.admin.find import story
from outbox.admin.handlers import Forgotten, forget, rename
from outbox.admin.hold import Hold, holds, pause, resume
from outbox.admin.letters import DeadLetter, ErrorGroup, count_dead_letters, dead_letters, error_groups
from outbox.admin.page import LISTED, Page
from outbox.admin.purging import Purged, purge, purged
from outbox.admin.replay_batches import Outcome
from outbox.admin.replaying import Candidate, Candidates, Interrupted, Replayed, candidates, interrupted, replay
from outbox.admin.selection import PayloadField, Selection
from outbox.admin.state import LOOK_AT, Count, HandlerStatus, Leader, Standby, Status, WorkerStatus, status
from outbox.admin.story import Failure, HandlerStory, Moment, Story, Wait

__all__ = [
    "LISTED",
    "LOOK_AT",
    "Cancellation",
    "Candidate",
    "Candidates",
    "Count",
    "DeadLetter",
    "Delivery",
    "Discarded",
    "Edit",
    "ErrorGroup",
    "Failure",
    "Forgotten",
    "HandlerStatus",
    "HandlerStory",
    "Hold",
    "Interrupted",
    "Leader",
    "LoggedEvent",
    "Moment",
    "Outcome",
    "Page",
    "PayloadField",
    "Purged",
    "Replayed",
    "Selection",
    "Standby",
    "Status",
    "Story",
    "Wait",
    "WorkerStatus",
    "cancel",
    "candidates",
    "count_dead_letters",
    "dead_letters",
    "discard",
    "error_groups",
    "events",
    "forget",
    "holds",
    "interrupted",
    "pause",
    "purge",
    "purged",
    "rename",
    "replay",
    "resume",
    "status",
    "story",
]
