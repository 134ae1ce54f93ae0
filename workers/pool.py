"""What a handler with `pool="process"` must be like. Pure."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from workers.binding import Binding
from workers.errors import HandlerError

CARRIED = {"event", "context", "payload"}
"""What can be injected in another process."""


def check_pool(function: Callable[..., Any], name: str, pool: str) -> None:
    """Raises `HandlerError` for a function that no other process could find, with advice."""
    if pool != "process":
        raise HandlerError(f'handler {name!r}: pool must be "process" or left out (for threads), not {pool!r}')
    if inspect.iscoroutinefunction(function):
        raise HandlerError(
            f"handler {name!r} is `async def`, which runs on the event loop: make it a plain `def` for pool='process'"
        )
    if "<" in function.__qualname__:
        raise HandlerError(
            f"handler {name!r} is {function.__qualname__}, and a child process finds a handler by the name of its "
            "module and its own: define it with def at the top of a module, not within a function and not as a lambda"
        )
    if function.__module__ == "__main__":
        raise HandlerError(
            f"handler {name!r} is defined in the program that was started, which a child process cannot import: move "
            "it to a module of its own and import it from there"
        )


def check_injected(binding: Binding) -> None:
    """Raises `HandlerError` for parameters that cannot be had in another process, with advice."""
    if binding.transactional:
        raise HandlerError(
            f"{binding.who} asks for a Session, whose transaction belongs to the worker's process: leave "
            "out pool='process' (a plain `def` runs in a thread), or open a session of your own in the handler and let "
            "event.id tell whether it ran before"
        )
    elsewhere = [parameter for kind, parameter in binding.injected.items() if kind not in CARRIED]
    for parameter in (*elsewhere, *(parameter for parameter, _ in binding.asked())):
        raise HandlerError(
            f"{binding.who}: parameter {parameter!r} lives in the worker's process and cannot be had in a "
            "child; only Event and Context can. Make what the handler needs at the top of its module, or leave out "
            "pool='process'"
        )
