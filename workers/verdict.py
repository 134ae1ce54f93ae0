"""Which errors of a handler are final and which are tried again. Pure; checked where the handler is declared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from workers.errors import (
    HandlerError,
    HandlerTimeoutError,
    PayloadMismatchError,
    Reject,
    RetryLater,
    Snooze,
    TransactionFailedError,
)

Classes: TypeAlias = type[BaseException] | Iterable[type[BaseException]]
"""The ways to say `retry_on=` and `dead_on=`: one exception class or several."""

_SAID = (RetryLater, Snooze, Reject)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """`dead_on` is final at once; if `retry_on` is not None, everything else is final, too. Subclasses count."""

    retry_on: tuple[type[BaseException], ...] | None = None
    dead_on: tuple[type[BaseException], ...] = ()
    all_final: bool = False
    """There is no second run, whatever happened, not even when the handler asks for it."""

    def final(self, error: BaseException) -> bool:
        """Whether a delivery that failed with `error` is dead at once.

        A payload that does not fit and a transaction that cannot come through are not the function's errors, and heal:
        `retry_on` does not concern them. What a handler says itself, with `RetryLater` for example, stands.

        >>> Verdicts(retry_on=(OSError,), dead_on=(FileNotFoundError,)).final(ConnectionResetError())
        False
        """
        if self.all_final:
            return True
        if isinstance(error, _SAID):
            return isinstance(error, Reject)
        if _is_one(error, self.dead_on):
            return True
        if self.retry_on is None or isinstance(error, PayloadMismatchError | TransactionFailedError):
            return False
        return not _is_one(error, self.retry_on)


def _is_one(error: BaseException, classes: tuple[type[BaseException], ...]) -> bool:
    # The worker's timeout is no TimeoutError, lest handlers catch it as an OSError; here it counts as one.
    return isinstance(error, classes) or (
        isinstance(error, HandlerTimeoutError) and any(issubclass(TimeoutError, each) for each in classes)
    )


def verdicts(retry_on: Classes | None, dead_on: Classes | None) -> Verdicts:
    """What `retry_on=` and `dead_on=` mean together. Raises `HandlerError` for what are no exception classes, and for a
    class of `retry_on` that never could be tried again, because `dead_on` has it or a class above it.

    >>> verdicts(ConnectionError, (ValueError, KeyError)).final(UnicodeError())
    True
    """
    wanted = None if retry_on is None else _classes(retry_on, "retry_on")
    final = () if dead_on is None else _classes(dead_on, "dead_on")
    if wanted == ():
        raise HandlerError("retry_on is empty: to try nothing again say max_attempts=1")
    for each in wanted or ():
        above = next((other for other in final if issubclass(each, other)), None)
        if above is not None:
            raise HandlerError(
                f"dead_on={above.__name__} leaves nothing of retry_on={each.__name__}: take it out of one of them; "
                "dead_on may name a part of what retry_on has, but not the other way round"
            )
    return Verdicts(wanted, final)


def _classes(given: Classes, option: str) -> tuple[type[BaseException], ...]:
    try:
        classes = (given,) if isinstance(given, type) else tuple(given)
    except TypeError:
        classes = (given,)  # type: ignore[assignment]
    for each in classes:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise HandlerError(f"{option} takes exception classes, like {option}=(ValueError, KeyError), not {each!r}")
        if issubclass(each, _SAID):
            raise HandlerError(
                f"{option} has {each.__name__}, which says itself what becomes of the event: take it out of {option}"
            )
    return classes
