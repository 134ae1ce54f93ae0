"""One handler: a function subscribed to an event name, with its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from workers.backoff import DEFAULT, Delays
from workers.binding import Binding
from workers.outcome import NONE_FINAL
from workers.verdict import Verdicts


@dataclass(frozen=True, slots=True, eq=False)
class Handler:
    """A function and how it is run. Made by `App.handler`.

    `timeout` and `soft_timeout` are in seconds; `concurrency` is the number of runs at once in one process, None for
    the worker's default.
    """

    name: str
    event_name: str
    function: Callable[..., Any]
    binding: Binding
    max_attempts: int = 10
    timeout: float = 30.0
    backoff: Delays = DEFAULT
    soft_timeout: float | None = None
    concurrency: int | None = None
    pool: Literal["process"] | None = None
    """Where a `def` handler runs: None for threads."""
    batch: int | None = None
    """How many events one run takes at most; None: one event, without a list around it."""
    batch_wait: float | None = None
    """Seconds that a batch waits for more after its first event."""
    start_at: str | None = None
    """Where it begins when it is new, as a PostgreSQL timestamp; None leaves it to the relay."""
    at_most_once: bool = False
    """Whatever happens, it never runs twice for an event by itself."""
    verdicts: Verdicts = NONE_FINAL
    """Which errors are final at once."""

    @property
    def asynchronous(self) -> bool:
        return inspect.iscoroutinefunction(self.function)

    @property
    def transactional(self) -> bool:
        return self.binding.transactional
