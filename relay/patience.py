"""Waiting for Redis to come back, for as long as this relay leads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import redis
import structlog
import tenacity

T = TypeVar("T")
log = structlog.get_logger()


class Stopping(Exception):
    """The relay was asked to stop while it waited."""


class Patience:
    """Tries a call again until Redis answers. `pause(seconds)` sleeps between attempts and raises to give up."""

    def __init__(self, pause: Callable[[float], None]) -> None:
        self.pause = pause
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type((redis.RedisError, OSError)),
            wait=tenacity.wait_exponential(multiplier=0.02, max=1.0) + tenacity.wait_random(0, 0.05),
            sleep=pause,
            before_sleep=_report,
            reraise=True,
        )

    def insist(self, attempt: Callable[[], T]) -> T:
        """The result of `attempt()`, once it neither raises a Redis error nor fails to connect."""
        return self._retrying.copy()(attempt)


def _report(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning("redis.away", error=f"{type(error).__name__}: {error}", attempt=state.attempt_number)
