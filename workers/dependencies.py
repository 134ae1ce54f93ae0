"""Dependencies, `Annotated[T, Depends(…)]`, resolved by fast-depends. Only handlers that have some come here.

fast-depends decides what is called when, calls what is cached once, and ends what was begun. It hands arguments on by
their names, from a payload to everything below it; here they go by type, and a payload's key must never replace a
dependency. So each callable stands in its graph as a step with one parameter, the run, out of which the step takes the
arguments itself.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

from anyio import CapacityLimiter, to_thread
from fast_depends import Depends, Provider, inject

from workers.binding import Binding, Dependency, kind_of
from workers.handler import Handler

Run = dict[str, Any]
"""What one run has: a value for each kind that is injected, and the payload."""


NONE_GIVEN: Mapping[Any, Any] = MappingProxyType({})


def composed(handler: Handler, resources: Mapping[Any, Any] = NONE_GIVEN) -> Callable[..., Any]:
    """What is called for each event, with all in place that is the same for every one: the handler's own function, when
    it asks for none of that. `resources` has the lifespan's, by type."""
    if handler.binding.dependencies:
        return resolving(handler.function, handler.binding, resources, asynchronous=handler.asynchronous)
    given = {parameter: resources[kind] for parameter, kind in handler.binding.resources.items()}
    return partial(handler.function, **given) if given else handler.function


def resolving(
    function: Callable[..., Any], binding: Binding, resources: Mapping[Any, Any], *, asynchronous: bool
) -> Callable[..., Any]:
    """`function` with its dependencies: takes what `binding` binds and injects, and calls the function with that and
    with what they return. `resources` has the lifespan's, by type.

    >>> await resolving(handler.function, handler.binding, {}, asynchronous=True)(user_id=7)
    """
    graph = _Graph(resources, asynchronous)
    hidden = [(kind, parameter) for kind, parameter in binding.injected.items() if not parameter.isidentifier()]
    shared = [(kind, parameter) for kind, parameter in binding.injected.items() if parameter.isidentifier()]
    step = graph.first(function, binding)
    solve = inject(step, dependency_provider=Provider(), cast=False)

    def call(**arguments: Any) -> Any:
        run = {kind: arguments.pop(parameter) for kind, parameter in hidden}
        for kind, parameter in shared:
            run[kind] = arguments[parameter]
        run["arguments"] = arguments
        return solve(run=run)

    return call


class _Graph:
    """Makes the steps of one handler; what is cached is one step wherever it is asked for."""

    def __init__(self, resources: Mapping[Any, Any], asynchronous: bool) -> None:
        self._resources = resources
        self._asynchronous = asynchronous
        self._steps: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._count = 0

    def first(self, function: Callable[..., Any], binding: Binding) -> Callable[..., Any]:
        given, solved = self._given(binding), self._names(binding)

        def arguments(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
            taken: dict[str, Any] = run["arguments"]
            return taken | given | _named(solved, results)

        return self._step(_function(function, arguments, asynchronous=self._asynchronous), binding, solved)

    def _dependency(self, dependency: Dependency) -> Any:
        if not dependency.cached:
            return Depends(self._made(dependency), use_cache=False)
        if dependency.call not in self._steps:
            self._steps[dependency.call] = self._made(dependency)
        return Depends(self._steps[dependency.call])

    def _made(self, dependency: Dependency) -> Callable[..., Any]:
        binding = dependency.binding
        given, solved = self._given(binding), self._names(binding)
        own = [(kind, parameter) for kind, parameter in binding.injected.items() if parameter.isidentifier()]

        def arguments(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
            bound = binding.bind(run["payload"]) if binding.fields or binding.rest else {}
            for kind, parameter in own:
                bound[parameter] = run[kind]
            return bound | given | _named(solved, results)

        kind = kind_of(dependency.call)
        if kind == "async generator":
            step = _entered(asynccontextmanager(dependency.call), arguments)
        elif kind == "generator" and self._asynchronous:
            manager = contextmanager(dependency.call)
            step = _entered(lambda **bound: _in_threads(manager(**bound)), arguments)
        elif kind == "generator":
            step = _entered_here(contextmanager(dependency.call), arguments)
        else:
            step = _function(dependency.call, arguments, asynchronous=kind == "coroutine")
        return self._step(step, binding, solved)

    def _given(self, binding: Binding) -> dict[str, Any]:
        return {parameter: self._resources[kind] for parameter, kind in binding.resources.items()}

    def _names(self, binding: Binding) -> dict[str, str]:
        """A name in the graph for each dependency's result: fast-depends takes equal names for equal values."""
        named = {}
        for parameter in binding.dependencies:
            self._count += 1
            named[parameter] = f"result_{self._count}"
        return named

    def _step(self, step: Callable[..., Any], binding: Binding, solved: Mapping[str, str]) -> Callable[..., Any]:
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter("run", keyword)] + [
            inspect.Parameter(solved[parameter], keyword, default=self._dependency(dependency))
            for parameter, dependency in binding.dependencies.items()
        ]
        step.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return step


Arguments = Callable[[Run, Mapping[str, Any]], dict[str, Any]]


def _named(solved: Mapping[str, str], results: Mapping[str, Any]) -> dict[str, Any]:
    return {parameter: results[name] for parameter, name in solved.items()}


def _function(call: Callable[..., Any], arguments: Arguments, *, asynchronous: bool) -> Callable[..., Any]:
    if not asynchronous:
        return lambda run, **results: call(**arguments(run, results))

    async def step(run: Run, **results: Any) -> Any:
        return await call(**arguments(run, results))

    return step


def _entered(manager: Callable[..., AbstractAsyncContextManager[Any]], arguments: Arguments) -> Callable[..., Any]:
    async def step(run: Run, **results: Any) -> AsyncIterator[Any]:
        failure: BaseException | None = None
        async with manager(**arguments(run, results)) as value:
            try:
                yield value
            except BaseException as error:
                failure = error
                raise
        # A dependency sees how the run ends; by keeping silent about it it must not make a failure an outcome.
        if failure is not None:
            raise failure

    return step


def _entered_here(manager: Callable[..., AbstractContextManager[Any]], arguments: Arguments) -> Callable[..., Any]:
    def step(run: Run, **results: Any) -> Iterator[Any]:
        failure: BaseException | None = None
        with manager(**arguments(run, results)) as value:
            try:
                yield value
            except BaseException as error:
                failure = error
                raise
        if failure is not None:
            raise failure

    return step


@asynccontextmanager
async def _in_threads(manager: AbstractContextManager[Any]) -> AsyncIterator[Any]:
    """A plain generator beside the event loop. It ends after a cancellation too, where fast-depends would leave it."""
    value = await to_thread.run_sync(manager.__enter__)
    # Not among the threads that others may all hold while they wait to enter.
    limiter = CapacityLimiter(1)
    try:
        yield value
    except BaseException as error:
        trace = error.__traceback__
        if not await to_thread.run_sync(manager.__exit__, type(error), error, trace, limiter=limiter):
            raise
    else:
        await to_thread.run_sync(manager.__exit__, None, None, None, limiter=limiter)
