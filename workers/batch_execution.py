"""One run of a batch: the call, and for a transactional handler one transaction with an outcome for every event."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection

from workers.batch import Batch
from workers.batch_middleware import around
from workers.database import array
from workers.delivery import dead_letter, failures, first_failures, keys
from workers.errors import SupersededError
from workers.execution import Execution
from workers.handler import Handler
from workers.job import Job
from workers.outcome import DONE, Dead, Done, Outcome, Retry, Snoozed
from workers.queries import sql
from workers.transaction import SUPERSEDED, commit_with, finish_leased, insert_with_results, merged


def write_outcomes(connection: Connection, job: Job, schema: str) -> None:
    """The rows of all deliveries of a batch, as the end of its transaction.

    Raises as `commit_with`, and `SupersededError` when one of them was lost. An outcome that another worker recorded
    first for one that failed stands, as it does for any failure. New rows travel with COMMIT in one message: a worker
    that is stopped here leaves none open for which others would wait.
    """
    assert isinstance(job, Batch)
    outcomes = job.outcomes
    if any(job.closed for job, _ in outcomes):
        raise SupersededError(SUPERSEDED)
    done = [(job, outcome) for job, outcome in outcomes if isinstance(outcome, Done)]
    if finished := [each for each in done if each[0].lease is not None]:
        finish_leased(connection, finished, schema)
    statements = [merged(connection, sql(name, schema), params) for name, params in _failed(outcomes)]
    if first := [each for each in done if each[0].lease is None]:
        # All in one, so that two workers with the same events meet them in the same order.
        plain = all(outcome is DONE for _, outcome in first)
        statements.append(
            _commit_batch([job for job, _ in first], schema)
            if plain
            else insert_with_results(connection, first, schema)
        )
    if statements:
        commit_with(connection, ";\n".join(statements), schema)


def _failed(outcomes: list[tuple[Job, Outcome]]) -> Iterator[tuple[str, dict[str, Any]]]:
    late = [(job, outcome) for job, outcome in outcomes if isinstance(outcome, Retry | Snoozed)]
    for job, outcome in outcomes:
        if isinstance(outcome, Dead):
            yield dead_letter(job, outcome.reason, outcome.traceback)
    if failed := [(job, outcome) for job, outcome in late if job.lease is None]:
        yield "retry", first_failures(failed)
    if failed := [(job, outcome) for job, outcome in late if job.lease is not None]:
        yield "finish_retry", failures(failed)


def _commit_batch(jobs: list[Job], schema: str) -> str:
    statement = sql("commit_batch", schema).replace("{handler}", jobs[0].lane.name)
    statement = statement.replace("{ids}", array([job.event_id for job in jobs]))
    return statement.replace("{ats}", array([str(job.at) for job in jobs]))


def arguments(handler: Handler, job: Job) -> dict[str, Any]:
    """What the function is called with, but for the session."""
    assert isinstance(job, Batch)
    return {handler.binding.injected["events"]: [each.event() for each in job.jobs]}


def take_all(job: Job, returned: object) -> None:
    """Take what the function returned for the outcomes of all events. Raises `BatchAnswerError`."""
    assert isinstance(job, Batch)
    job.answer(returned)


class BatchExecution(Execution):
    """Runs the batches of one handler. Calling it gives True when the outcomes are recorded already."""

    _bind = staticmethod(arguments)
    _take = staticmethod(take_all)
    _write = staticmethod(write_outcomes)
    _around = staticmethod(around)

    async def _plain(self, batch: Job) -> bool:
        self._take(batch, await self.call(**self._arguments(batch)))
        return False

    async def _transactional(self, batch: Job) -> bool:
        assert isinstance(batch, Batch)
        while batch.jobs:
            try:
                return await super()._transactional(batch)
            except SupersededError:
                before = len(batch.jobs)
                await self._recorded(batch)
                if len(batch.jobs) == before:
                    raise
                self._log.info("batch.superseded", events=before - len(batch.jobs))
        return True

    async def _recorded(self, batch: Job) -> bool:
        """Take out of the batch what has an outcome or was lost; whether nothing is left. Waits for PostgreSQL."""
        assert isinstance(batch, Batch)
        batch.jobs = [job for job in batch.jobs if not job.closed]
        batch.outcomes = []
        if batch.jobs:
            rows: dict[str, str | None] = dict(await self._database.fetch("standing", keys(batch.jobs)))
            standing = [job for job in batch.jobs if _stands(job, rows)]
            batch.settled += [job for job in batch.jobs if job not in standing]
            batch.jobs = standing
        return not batch.jobs


def _stands(job: Job, rows: dict[str, str | None]) -> bool:
    return job.event_id not in rows if job.lease is None else rows.get(job.event_id) == job.lease
