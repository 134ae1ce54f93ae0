"""What a handler may know about its own run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Context:
    """Injected into parameters annotated with it.

    `attempt` counts from 1; `handler` is the handler's full name; `logger` is a structlog logger bound to handler,
    event id and attempt.

    >>> async def charge(order_id: int, context: Context) -> None:
    ...     context.logger.info("charging", order_id=order_id)
    """

    attempt: int
    max_attempts: int
    handler: str
    logger: Any
