"""What a run that killed its own child process means. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from workers.backoff import Delays
from workers.outcome import MAX_CRASHES, Dead, Retry


@dataclass(frozen=True, slots=True)
class Crashed(Retry):
    """It killed its process; try again in `delay` seconds. Counts as a crash of the delivery."""


def judge(
    error: BaseException, *, attempt: int, crashes: int, max_attempts: int, backoff: Delays, random: float
) -> Crashed | Dead:
    """The outcome of an attempt whose process died as `error` says; `crashes` is how often that happened before.

    >>> judge(ChildDiedError("killed by SIGSEGV"), attempt=3, crashes=2, max_attempts=10, backoff=Backoff(), random=0.5)
    Dead(reason='its child process died three times while it ran, the last time killed by SIGSEGV')
    """
    if crashes + 1 >= MAX_CRASHES:
        return Dead(f"its child process died three times while it ran, the last time {error}")
    text = f"its child process died while it ran: {error}"
    if attempt >= max_attempts:
        return Dead(text)
    return Crashed(backoff.delay(attempt, random, error), text)
