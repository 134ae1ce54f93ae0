"""A `process` span around each run: a child of its event's creation; around a batch, linked with those of its events.

What the handler does, and what it adds, belongs to it. Where no SDK is active at the start, nothing is around a run.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from outbox import spans
from workers.batch import Batch
from workers.errors import DecidedError, RetryLater, Snooze, SupersededError
from workers.handler import Handler
from workers.job import Job

Run: TypeAlias = Callable[[Job], Awaitable[bool]]


def around(handler: Handler, run: Run) -> Run:
    """`run` within a span, or `run` itself without an SDK."""
    tracer = spans.tracer()
    if tracer is None:
        return run
    name, kind = f"process {handler.event_name}", spans.kind("CONSUMER")

    async def traced(job: Job) -> bool:
        with tracer.start_as_current_span(
            name, kind=kind, attributes=_facts(job), record_exception=False, set_status_on_exception=False
        ) as span:
            if isinstance(job, Batch):
                _link(span, job)
            else:
                span.set_attribute("outbox.attempt", job.attempt)
            try:
                return await run(job)
            except BaseException as error:
                cause = error.__cause__ if isinstance(error, DecidedError) and error.__cause__ else error
                # What is put off, or was done by another worker, has not failed.
                if not isinstance(cause, RetryLater | Snooze | SupersededError):
                    spans.failed(span, cause)
                raise

    return traced


def _facts(job: Job) -> dict[str, str | int]:
    if isinstance(job, Batch):
        return spans.attributes("process", destination=job.name, group=job.lane.name, count=len(job.jobs))
    return spans.attributes("process", destination=job.name, group=job.lane.name, message=job.event_id)


def _link(span: Any, batch: Batch) -> None:
    for job in batch.jobs[: spans.MOST_LINKS]:
        if job.headers:
            spans.link(span, json.loads(job.headers))
