"""Pure: which types an app's lifespan gives to handlers. They are read from its return annotation, so that they are
known where a handler is decorated."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Hashable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager
from typing import Any, NewType, get_args, get_origin

from outbox.errors import ConfigurationError
from outbox.event import Event
from workers.context import Context

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]
"""Takes the app and gives an async context manager, whose value handlers are given by its type."""

_OWN = (Event, Context)
_SESSIONS = {"sqlalchemy.ext.asyncio": ("AsyncSession", "async_session"), "sqlalchemy.orm": ("Session", "session")}
_YIELDING = (AsyncIterator, AsyncIterable, AsyncGenerator, AbstractAsyncContextManager)
_OF_PAYLOADS = {"builtins", "typing", "types", "datetime", "decimal", "uuid", "collections", "collections.abc"}


def sessions() -> dict[Any, str]:
    """SQLAlchemy's classes of sessions, with what each is called where it is injected.

    Only those that are loaded: no annotation is a class that nobody imported, and who asks for no session is spared
    SQLAlchemy.
    """
    return {
        getattr(sys.modules[module], name): kind for module, (name, kind) in _SESSIONS.items() if module in sys.modules
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Resources:
    """What a lifespan declares. `fields` has the field that holds a type; None is the value that is yielded itself."""

    declared: Any = None
    fields: Mapping[Hashable, str | None] = dataclasses.field(default_factory=dict)
    ambiguous: frozenset[Hashable] = frozenset()
    """Types of more than one field."""

    def listed(self) -> str:
        """The types in words, for errors."""
        return ", ".join(shown(each) for each in self.fields) or "nothing"

    def taken(self, value: object, wanted: Iterable[tuple[str, str, Any]]) -> dict[Hashable, Any]:
        """The resources by their types, once the lifespan has given `value`. `wanted` has who asks: handler, parameter
        and type. Raises `ConfigurationError` for what is not of the type that was declared.

        >>> resources.taken(pool, [("charge", "pool", Pool)])
        {<class 'Pool'>: <Pool>}
        """
        if self.declared is None and value is not None:
            raise ConfigurationError(
                f"the lifespan gave a {type(value).__name__} but does not declare it: annotate what it returns, such "
                f"as `-> AsyncIterator[{type(value).__name__}]`"
            )
        found: dict[Hashable, Any] = {}
        for handler, parameter, kind in wanted:
            field = self.fields[kind]
            given = value if field is None else getattr(value, field, None)
            if given is None or not _is_a(given, kind):
                where = "" if field is None else f" in its field {field!r}"
                raise ConfigurationError(
                    f"handler {handler!r} asks for {shown(kind)} (parameter {parameter!r}), but the lifespan gave "
                    f"{'None' if given is None else f'a {type(given).__name__}'}{where}"
                )
            found[kind] = given
        return found


def declared(lifespan: Lifespan | None, namespace: Mapping[str, Any]) -> Resources:
    """What `lifespan` declares by its return annotation. Raises `ConfigurationError` for what cannot be a lifespan.

    >>> @asynccontextmanager
    ... async def lifespan(app: App) -> AsyncIterator[Pool]: ...
    >>> declared(lifespan, {}).listed()
    'Pool'
    """
    if lifespan is None:
        return Resources()
    if inspect.isasyncgenfunction(lifespan) or inspect.iscoroutinefunction(lifespan) or not callable(lifespan):
        raise ConfigurationError(
            "lifespan must be a function of the app that gives an async context manager: decorate it with "
            "@contextlib.asynccontextmanager"
        )
    value = _value(_returned(lifespan, namespace))
    if value is None:
        return Resources()
    if not _is_resource(value):
        raise ConfigurationError(
            f"the lifespan gives a {shown(value)}, as payloads do: let it give an instance of a class of your own, "
            "such as a dataclass with a field for each resource"
        )
    found: dict[Hashable, list[str | None]] = {value: [None]}
    for field, kind in _fields(value).items():
        if _is_resource(kind):
            found.setdefault(kind, []).append(field)
    for kind in found:
        if kind in _OWN or kind in sessions():
            raise ConfigurationError(f"the lifespan gives a {shown(kind)}, which handlers get from the worker itself")
    return Resources(
        declared=value,
        fields={kind: places[0] for kind, places in found.items() if len(places) == 1},
        ambiguous=frozenset(kind for kind, places in found.items() if len(places) > 1),
    )


def _returned(lifespan: Lifespan, namespace: Mapping[str, Any]) -> Any:
    # asynccontextmanager leaves the annotations of the function that it wraps.
    function = inspect.unwrap(lifespan)
    try:
        return typing.get_type_hints(function, localns=dict(namespace), include_extras=True).get("return")
    except NameError as error:
        raise ConfigurationError(
            f"the lifespan's annotations cannot be resolved ({error}): import them at run time, not under TYPE_CHECKING"
        ) from None
    except TypeError:
        return None


def _value(returned: Any) -> Any:
    if get_origin(returned) not in _YIELDING:
        return None
    value = get_args(returned)[0]
    return None if value in (None, type(None), Any) else value


def _fields(kind: Any) -> Mapping[str, Any]:
    named = isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")
    if not named and not dataclasses.is_dataclass(kind):
        return {}
    names: Sequence[str] = kind._fields if named else [field.name for field in dataclasses.fields(kind)]
    hints = typing.get_type_hints(kind)
    return {name: hints[name] for name in names if name in hints}


def _is_resource(kind: Any) -> bool:
    """Whether a field is given by its type: a number or a text of a configuration must never stand for a payload's."""
    if isinstance(kind, NewType):
        return True
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and origin.__module__ not in _OF_PAYLOADS


def _is_a(value: object, kind: Any) -> bool:
    expected = get_origin(kind) or kind
    try:
        return not isinstance(expected, type) or isinstance(value, expected)
    except TypeError:
        # A protocol or TypedDict, which nothing can be an instance of at run time.
        return True


def shown(kind: Any) -> str:
    """A type as it is written."""
    return str(kind) if get_origin(kind) is not None else getattr(kind, "__name__", None) or str(kind)
