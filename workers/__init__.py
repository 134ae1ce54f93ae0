"""Workers: run handlers for the events that were published, and record in PostgreSQL what came of each.

>>> app = workers.App()
>>> @app.handler("send_email", max_attempts=10, timeout=30)
... async def send_email(user_id: int, session: AsyncSession, event: Event) -> None: ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fast_depends import Depends

from outbox.event import Event
from workers.app import App
from workers.backoff import Backoff
from workers.batch_middleware import BatchMiddleware, BatchNext, Outcomes
from workers.context import Context
from workers.errors import (
    HandlerError,
    PayloadMismatchError,
    Reject,
    RetryLater,
    SessionOwnedError,
    Snooze,
    SoftTimeout,
)
from workers.middleware import Middleware, Next
from workers.outcome import Dead, Done, Outcome, Retry

if TYPE_CHECKING:
    from workers.worker import Worker

__all__ = [
    "App",
    "Backoff",
    "BatchMiddleware",
    "BatchNext",
    "Context",
    "Dead",
    "Depends",
    "Done",
    "Event",
    "HandlerError",
    "Middleware",
    "Next",
    "Outcome",
    "Outcomes",
    "PayloadMismatchError",
    "Reject",
    "Retry",
    "RetryLater",
    "SessionOwnedError",
    "Snooze",
    "SoftTimeout",
    "Worker",
]


def __getattr__(name: str) -> Any:
    # A child process runs handlers, and has no use for what it takes to reach PostgreSQL and Redis.
    if name != "Worker":
        raise AttributeError(f"module 'workers' has no attribute {name!r}")
    from workers.worker import Worker

    globals()[name] = Worker
    return Worker
