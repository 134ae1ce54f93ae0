"""The application: the handlers that one kind of worker process runs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, TypeVar

from outbox.errors import ConfigurationError, PayloadError
from outbox.names import check_name
from workers import batch as batches
from workers import binding, once, resources
from workers.backoff import DEFAULT, BackoffLike, delays
from workers.batch_middleware import BatchMiddleware
from workers.errors import HandlerError
from workers.handler import Handler
from workers.middleware import Middleware, check
from workers.pool import check_injected, check_pool
from workers.resources import Lifespan
from workers.verdict import Classes, verdicts

Start: TypeAlias = datetime | Literal["beginning", "now"]

Around = TypeVar("Around", bound=Middleware)
AroundBatch = TypeVar("AroundBatch", bound=BatchMiddleware)
Function = TypeVar("Function", bound=Callable[..., Any])


class App:
    """Collects handlers. `prefix` keeps the handler names of several services on one database apart. `backoff`,
    `retry_on` and `dead_on` are what handlers have that say nothing else; see `handler`.

    `lifespan` is a function of the app that gives an async context manager. A worker process enters it before it reads
    the first event and leaves it after its last run; leaving may take 5 seconds. What it gives is handed to handlers by
    its type, which its return annotation declares: a parameter annotated with it is injected, whatever the parameter's
    name. A dataclass or NamedTuple gives each of its fields too, by the field's type, but for types that payloads have
    (`str`, `int`, `datetime`, …). A handler in a thread gets the same object as those on the event loop.

    `middleware` and `batch_middleware` are what is around every run of one event or of a batch, outermost first; see
    the methods of these names.

    Raises `ConfigurationError` for what is no lifespan, or gives what handlers get anyway.

    >>> @asynccontextmanager
    ... async def lifespan(app: App) -> AsyncIterator[httpx.AsyncClient]:
    ...     async with httpx.AsyncClient() as client:
    ...         yield client
    >>> app = workers.App(lifespan=lifespan)
    >>> @app.handler("send_email", max_attempts=5)
    ... async def send_email(user_id: int, client: httpx.AsyncClient) -> None: ...
    """

    def __init__(
        self,
        *,
        prefix: str = "",
        lifespan: Lifespan | None = None,
        middleware: Sequence[Middleware] = (),
        batch_middleware: Sequence[BatchMiddleware] = (),
        backoff: BackoffLike | None = None,
        retry_on: Classes | None = None,
        dead_on: Classes | None = None,
    ) -> None:
        if prefix:
            check_name(prefix, "prefix")
        self.prefix = prefix
        self.lifespan = lifespan
        self.resources = resources.declared(lifespan, sys._getframe(1).f_locals)
        self._backoff = DEFAULT if backoff is None else delays(backoff)
        self._verdicts = verdicts(retry_on, dead_on)
        self._handlers: dict[str, Handler] = {}
        self._middleware: list[Middleware] = []
        for each in middleware:
            self.middleware(each)
        self._batch_middleware: list[BatchMiddleware] = []
        for one in batch_middleware:
            self.batch_middleware(one)

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """All handlers by their full name."""
        return MappingProxyType(self._handlers)

    @property
    def middlewares(self) -> tuple[Middleware, ...]:
        """All middleware, outermost first."""
        return tuple(self._middleware)

    @property
    def batch_middlewares(self) -> tuple[BatchMiddleware, ...]:
        """All middleware of handlers with `batch=`, outermost first."""
        return tuple(self._batch_middleware)

    def middleware(self, function: Around) -> Around:
        """Put a function around every run of every handler, inside of those that were added before. It is returned
        unchanged.

        It takes the event and `next`, which runs the rest and gives the outcome as a value: `Done`, `Retry` or `Dead`
        (or that the event was snoozed). It returns that outcome or another one, sets context variables that the handler
        sees, and may leave the handler out. What it raises is judged as if the handler had raised it. It runs under the
        handler's timeout.

        A transactional handler's `Done` means that it is committed, with its outcome: that cannot be changed any more,
        and what tries to is logged as an error, `middleware.too_late`. Any other outcome means that the transaction is
        rolled back. `Done.result` is what is kept of what the handler returned; a plain one's may be replaced, and
        `Done()` leaves none. When a run ends without an outcome, because the worker stops or another one has the event,
        `next` raises. Handlers with `batch=` have `batch_middleware`; with `pool="process"` it stays in the worker's
        process.

        Raises `HandlerError` for what is not `async def`.

        >>> @app.middleware
        ... async def timed(event: Event, next: workers.Next) -> workers.Outcome:
        ...     with histogram.labels(event.name).time():
        ...         return await next(event)
        """
        check(function)
        self._middleware.append(function)
        return function

    def batch_middleware(self, function: AroundBatch) -> AroundBatch:
        """Put a function around every run of every handler with `batch=`, inside of those that were added before. It
        is returned unchanged.

        It takes the events of the run, a tuple, and `next`, which runs the rest and gives a dict with the outcome of
        each by `event.id`. It returns that dict or another one. An event that another worker has meanwhile is not in
        it. All else is as for `middleware`, with two differences:

        - When the handler raises there are no outcomes yet, and `next` raises the same. Let through, it is the failure
          of an event that is alone, and has several run again in two halves, each with a passage of its own. Who
          returns outcomes instead decides for all of them.
        - The outcomes of a transactional batch are committed together, also `Retry` and `Dead` that the handler
          returned for some: none of them can be changed.

        Raises `HandlerError` for what is not `async def`.

        >>> @app.batch_middleware
        ... async def timed(events: Sequence[Event], next: workers.BatchNext) -> workers.Outcomes:
        ...     with histogram.labels(events[0].name).time():
        ...         return await next(events)
        """
        check(function, "(events, next)")
        self._batch_middleware.append(function)
        return function

    def handler(
        self,
        event_name: str,
        *,
        name: str | None = None,
        max_attempts: int | None = None,
        timeout: float = 30.0,
        soft_timeout: float | None = None,
        backoff: BackoffLike | None = None,
        retry_on: Classes | None = None,
        dead_on: Classes | None = None,
        concurrency: int | None = None,
        pool: Literal["process"] | None = None,
        start: Start | None = None,
        batch: int | None = None,
        batch_wait: float | None = None,
        at_most_once: bool = False,
    ) -> Callable[[Function], Function]:
        """Subscribe a function to an event name. The function itself is returned unchanged.

        `name` is the handler's name (the function's by default), under which its progress is kept: do not change it
        lightly. `concurrency` is how many runs one process does at once. After `max_attempts` (10 by default) failed
        runs an event is dead.

        `timeout` and `soft_timeout` are in seconds. At the soft one `SoftTimeout` is raised in the run, so that it may
        clean up. At the other its time is over: a coroutine is cancelled, a thread gets an exception, which a call into
        C notices only when it returns, and a child process is killed.

        `pool="process"` runs a plain `def` handler in child processes, one run at a time in each: for work that keeps
        the interpreter busy, that may crash, or that must end at its timeout whatever it does. A child imports the
        function's module and finds it there by its name, so it must be defined at the top of a module that can be
        imported. It may ask for `Event` and `Context`, not for a session. By default as many run at once as there are
        processors.

        `backoff` is the delay before the next attempt: a `Backoff`, seconds or a timedelta, a sequence of these for the
        first, second and further attempts (the last repeats), or one of tenacity's wait strategies. `dead_on` are
        exception classes after which an event is dead at once; with `retry_on` all others are. Subclasses count, what
        is in both by way of them is final, and `()` takes back what the app says of `dead_on`. Neither concerns
        `RetryLater`, `Snooze` and `Reject`; `retry_on` not a payload that does not fit, either, which is tried again.

        The function may return `Retry(…)` or `Dead(…)`. Anything else is done, and is kept with the delivery as its
        result, for `outbox.status`: a value by the rules of payloads, of at most 8 KiB as JSON. What is larger or no
        JSON is dropped, with one warning of the process (`result.not_kept`). `Done(result=…)` says the same.

        `start` is where a new handler begins: `"beginning"` with all events that are retained, `"now"` with what is
        added after it was first registered, an aware datetime with what was added from then on, and with the rest of
        the relay's batch that this falls into. By default the first handler of an event name begins at the beginning
        and later ones now. A handler that is known goes on where it is.

        With `batch` one run takes up to so many events, at most 1,000, as a parameter annotated `list[Event]`. It waits
        for more until `batch_wait` seconds (0.05 by default, at most 60) after the first of them came, and `timeout`,
        `concurrency` are those of a batch. The outcomes of a transactional batch commit with it. When the handler
        raises, the halves of the batch are run in its place, until the bad events are alone; only those cost an
        attempt. It may return an outcome for each event instead: a list in their order or a dict by `event.id`, with
        None or `Done(result=…)` for done and an exception for what failed. Events that failed that way are recorded in
        the same transaction as the others.

        `at_most_once=True` is for the rare plain handler that must never run twice for an event: before the run its
        delivery is recorded as dead, with a dead letter that says "interrupted", and as done after it. A failure, a
        timeout or a crash leaves the dead letter, and only a replay runs it again, so `max_attempts`, `backoff` and
        `retry_on` are refused with it. It costs each run a transaction more.

        Raises `HandlerError` for a function that cannot be called this way and `ConfigurationError` for a duplicate
        name.

        >>> @app.handler("order_placed", timeout=5, backoff=workers.Backoff(initial=2, maximum=60))
        ... def book(order_id: int, session: Session) -> None: ...
        """
        attempts = 10 if max_attempts is None else max_attempts
        _check_options(event_name, attempts, timeout, soft_timeout, concurrency)
        start_at = _start_at(start)
        waits = self._backoff if backoff is None else delays(backoff)
        judged = verdicts(
            self._verdicts.retry_on if retry_on is None else retry_on,
            self._verdicts.dead_on if dead_on is None else dead_on,
        )

        if at_most_once:
            attempts, judged = 1, replace(judged, all_final=True)

        def register(function: Function) -> Function:
            if not inspect.isroutine(function) or inspect.isasyncgenfunction(function):
                raise HandlerError(f"a handler must be a function (def or async def), not {function!r}")
            short = name or function.__name__
            full = f"{self.prefix}.{short}" if self.prefix else short
            try:
                check_name(full, "handler name")
            except PayloadError as error:
                raise HandlerError(f"{error}; pass name=…") from None
            if full in self._handlers:
                raise ConfigurationError(
                    f"two handlers are named {full!r}: pass name=… to one of them (names identify progress, so they "
                    "must be unique)"
                )
            if pool is not None:
                check_pool(function, full, pool)
            # Types that live in the decorating function are out of reach of the function's globals.
            namespace = sys._getframe(1).f_locals
            compiled = binding.compile(function, full, namespace, self.resources)
            batches.check(full, compiled, batch, batch_wait, pool)
            if pool is not None:
                check_injected(compiled)
            if at_most_once:
                said = any(option is not None for option in (max_attempts, backoff, retry_on))
                once.check(full, compiled, batch=batch, repeats=said)
            self._handlers[full] = Handler(
                name=full,
                event_name=event_name,
                function=function,
                binding=compiled,
                max_attempts=attempts,
                timeout=timeout,
                backoff=waits,
                soft_timeout=soft_timeout,
                concurrency=concurrency,
                pool=pool,
                start_at=start_at,
                batch=batch,
                batch_wait=batch_wait,
                at_most_once=at_most_once,
                verdicts=judged,
            )
            return function

        return register


def _start_at(start: Start | None) -> str | None:
    """Where to begin, as a PostgreSQL timestamp."""
    if start is None:
        return None
    if isinstance(start, datetime) and start.tzinfo is not None:
        return start.isoformat()
    if start == "beginning":
        return "-infinity"
    if start == "now":
        return "infinity"
    raise HandlerError(f'start must be "beginning", "now" or a datetime with a time zone, not {start!r}')


def _check_options(
    event_name: str, max_attempts: int, timeout: float, soft_timeout: float | None, concurrency: int | None
) -> None:
    try:
        check_name(event_name)
    except PayloadError as error:
        raise HandlerError(str(error)) from None
    if max_attempts < 1:
        raise HandlerError("max_attempts must be at least 1")
    if not 0 < timeout < float("inf"):
        raise HandlerError("timeout must be a positive number of seconds")
    if soft_timeout is not None and not 0 < soft_timeout < timeout:
        raise HandlerError("soft_timeout must be a positive number of seconds, and shorter than timeout")
    if concurrency is not None and concurrency < 1:
        raise HandlerError("concurrency must be at least 1")
