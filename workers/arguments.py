"""What a handler is called with for one delivery, but for its session."""

from __future__ import annotations

import json
from typing import Any

import structlog

from workers.context import Context
from workers.handler import Handler
from workers.job import Job

_loads = json.JSONDecoder().decode


def arguments(handler: Handler, job: Job) -> dict[str, Any]:
    """The arguments by name. Raises `PayloadMismatchError`."""
    binding = handler.binding
    payload = _loads(job.payload)
    bound = binding.bind(payload)
    if binding.injected:
        if parameter := binding.injected.get("payload"):
            bound[parameter] = payload
        if parameter := binding.injected.get("event"):
            bound[parameter] = job.event()
        if parameter := binding.injected.get("context"):
            bound[parameter] = Context(
                attempt=job.attempt,
                max_attempts=handler.max_attempts,
                handler=handler.name,
                logger=structlog.get_logger().bind(handler=handler.name, event_id=job.event_id, attempt=job.attempt),
            )
    return bound
