"""Events older than what is retained: their outcomes are gone, so they are refused instead of run. Pure."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from workers.job import Job

ERROR = (
    "redelivered after its retention: whether it was handled is not known any more; it was not run,"
    " `outbox replay` runs it"
)


def parameters(jobs: list[Job], handler: str) -> dict[str, Any]:
    """Parameters of `expired` for jobs of one handler."""
    return {
        "handler": handler,
        "error": ERROR,
        "ids": [job.event_id for job in jobs],
        "ats": [job.at for job in jobs],
        "names": [job.name for job in jobs],
        "keys": [job.key or None for job in jobs],
        "payloads": [as_json(job.payload) for job in jobs],
        "headers": [as_json(job.headers) if job.headers else None for job in jobs],
    }


def as_json(text: str) -> str:
    """`text` if PostgreSQL takes it as JSON, else as a JSON string.

    >>> as_json('{"n": NaN}')
    '"{\\"n\\": NaN}"'
    """
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return json.dumps(text)
    return text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
