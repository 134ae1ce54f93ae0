"""A handler's parameters: what is injected by annotation, and what comes from the payload and how it is validated.

Rules. A parameter annotated with `Event`, `AsyncSession`, `Session`, `Context` or a type that the app's lifespan gives
is injected, whatever its name. Every other one takes the payload's key of its name, validated by pydantic against its
annotation. A missing key without a default is an error that names the field; a key that no parameter knows is ignored
(a newer writer), or goes into `**kwargs`. If a handler has exactly one payload parameter, annotated with a pydantic
model or a dataclass, and the payload has no key of its name, the parameter takes the whole payload. A parameter with
`Depends(…)` is given what its dependency returns, whose own parameters follow the same rules.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from typing import Annotated, Any, Literal, get_args, get_origin
from uuid import UUID

from fast_depends.dependencies import Dependant
from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from outbox.event import Event
from workers.context import Context
from workers.errors import HandlerError, PayloadMismatchError
from workers.resources import Resources, sessions, shown

INJECTABLE: dict[Any, str] = {
    Event: "event",
    list[Event]: "events",
    Context: "context",
}

SCALARS = (int, str, float, bool, UUID, Decimal, date, datetime)
"""Types that know no aliases."""

NO_RESOURCES = Resources()

Validate = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Binding:
    """How one function is called. Made once by `compile`, used for every event."""

    who: str
    """Whose parameters these are, for errors."""
    fields: tuple[tuple[str, Validate | None, bool], ...]
    """Payload parameters: name, validator (None takes the value as it is), and whether the key is required."""
    injected: Mapping[str, str]
    """Parameter name by injected kind: event, async_session, session, context. What only a dependency asks for, and the
    payload for its fields, stands under a name that no parameter can have."""
    whole: bool
    """The single payload parameter may take the whole payload."""
    rest: bool
    """The function takes `**kwargs`."""
    resources: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Type by the name of the parameter that is given what the lifespan has of it."""
    dependencies: Mapping[str, Dependency] = dataclasses.field(default_factory=dict)
    """By the name of the parameter that is given its result."""

    @property
    def transactional(self) -> bool:
        return "async_session" in self.injected or "session" in self.injected

    def asked(self) -> Iterator[tuple[str, Any]]:
        """Every parameter, here and in dependencies, that is given a resource, with its type."""
        yield from self.resources.items()
        for dependency in self.dependencies.values():
            yield from dependency.binding.asked()

    def bind(self, payload: Any) -> dict[str, Any]:
        """The arguments that come from the payload. Raises `PayloadMismatchError`."""
        if self.whole and not (isinstance(payload, dict) and self.fields[0][0] in payload):
            field, validate, _ = self.fields[0]
            try:
                return {field: payload if validate is None else validate(payload)}
            except ValidationError as error:
                raise self._mismatch(field, error, ()) from None
        if not isinstance(payload, dict):
            raise PayloadMismatchError(
                f"the payload does not fit {self.who}: it is a {type(payload).__name__}, not an object"
            )
        bound = {}
        field = ""
        try:
            for field, validate, required in self.fields:
                if field in payload:
                    value = payload[field]
                    bound[field] = value if validate is None else validate(value)
                elif required:
                    raise PayloadMismatchError(
                        f"the payload does not fit {self.who}: field {field!r} is missing", field=field
                    )
        except ValidationError as error:
            raise self._mismatch(field, error, (field,)) from None
        if self.rest:
            taken = {*self.injected.values(), *self.resources, *self.dependencies}
            for field, value in payload.items():
                if field not in bound and field not in taken:
                    bound[field] = value
        return bound

    def _mismatch(self, field: str, error: ValidationError, place: tuple[str, ...]) -> PayloadMismatchError:
        # Only place and rule: the input itself may be confidential.
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = ".".join(str(part) for part in (*place, *first["loc"])) or field
        return PayloadMismatchError(f"the payload does not fit {self.who}: field {path!r}: {first['msg']}", field=path)


@dataclass(frozen=True, slots=True)
class Dependency:
    """What a parameter depends on: something callable, and how it is called."""

    call: Callable[..., Any]
    cached: bool
    """Called once in a run, however many ask for it."""
    binding: Binding


def compile(
    function: Callable[..., Any],
    name: str,
    namespace: Mapping[str, Any] | None = None,
    resources: Resources = NO_RESOURCES,
) -> Binding:
    """Read a handler's signature. `namespace` helps to resolve string annotations, `resources` is what the app's
    lifespan gives. Raises `HandlerError`.

    >>> compile(send_email, "send_email").bind({"user_id": "7", "template": "welcome"})
    {'user_id': 7, 'template': 'welcome'}
    """
    asynchronous = inspect.iscoroutinefunction(function)
    return _compiled(function, f"handler {name!r}", _Place(namespace or {}, resources, asynchronous))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a function is compiled: for what app, and for which kind of handler."""

    namespace: Mapping[str, Any]
    resources: Resources
    asynchronous: bool
    path: tuple[Callable[..., Any], ...] = ()


def _compiled(function: Callable[..., Any], who: str, place: _Place) -> Binding:
    hints = _hints(function, who, place.namespace)
    fields: list[tuple[str, Validate | None, bool]] = []
    injected: dict[str, str] = {}
    given: dict[str, Any] = {}
    dependencies: dict[str, Dependency] = {}
    whole = rest = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            rest = True
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise HandlerError(f"{who}: parameter {parameter.name!r} must be passable by name (no *args, no `/`)")
        annotation = hints.get(parameter.name, Any)
        if (marker := _marker(annotation, parameter, who)) is not None:
            dependencies[parameter.name] = _dependency(marker, who, place)
            continue
        bare = _bare(annotation)
        kind = INJECTABLE.get(bare) or sessions().get(bare)
        if kind is not None:
            if kind in injected:
                raise HandlerError(f"{who} asks twice for {shown(annotation)}")
            injected[kind] = parameter.name
            continue
        if bare in place.resources.ambiguous:
            raise HandlerError(
                f"{who}: parameter {parameter.name!r} asks for {shown(annotation)}, of which the lifespan gives "
                f"several: ask for {shown(place.resources.declared)}, or tell them apart by a typing.NewType"
            )
        if bare in place.resources.fields:
            given[parameter.name] = bare
            continue
        validate = _validator(annotation, parameter.name, who, place.resources)
        fields.append((parameter.name, validate, parameter.default is parameter.empty))
        whole = _is_record(bare)
    _check_session(who, injected, place.asynchronous)
    for dependency in dependencies.values():
        _carry(dependency.binding, injected)
    whole = whole and len(fields) == 1 and not rest
    return Binding(who, tuple(fields), injected, whole, rest, given, dependencies)


def _marker(annotation: Any, parameter: inspect.Parameter, who: str) -> Dependant | None:
    extras = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    for each in (*extras, parameter.default):
        if isinstance(each, Dependant):
            return each
        if type(each).__name__ == "Depends" and type(each).__module__.startswith("fastapi."):
            raise HandlerError(
                f"{who}: parameter {parameter.name!r} has FastAPI's Depends, which needs a request: use workers.Depends"
            )
    return None


def _dependency(marker: Dependant, who: str, place: _Place) -> Dependency:
    call = marker.dependency
    if not callable(call):
        raise HandlerError(f"{who}: Depends takes something callable, not {call!r}")
    called = getattr(call, "__name__", type(call).__name__)
    if call in place.path:
        raise HandlerError(f"{who}: dependency {called!r} depends on itself")
    if not place.asynchronous and kind_of(call) in ("coroutine", "async generator"):
        raise HandlerError(
            f"{who} runs in a thread, as a plain `def`: its dependency {called!r} cannot be asynchronous"
        )
    handler = who.partition(" of ")[2] or who
    inner = _compiled(call, f"dependency {called!r} of {handler}", dataclasses.replace(place, path=(*place.path, call)))
    return Dependency(call, marker.use_cache, inner)


def _carry(inner: Binding, injected: dict[str, str]) -> None:
    """Let a run have what a dependency asks for."""
    for kind in (*inner.injected, *(("payload",) if inner.fields or inner.rest else ())):
        injected.setdefault(kind, f"<{kind}>")


def kind_of(call: Any) -> Literal["function", "generator", "coroutine", "async generator"]:
    """How something callable gives its result."""
    target = call if inspect.isroutine(call) or inspect.isclass(call) or isinstance(call, partial) else call.__call__
    if inspect.isasyncgenfunction(target):
        return "async generator"
    if inspect.iscoroutinefunction(target):
        return "coroutine"
    return "generator" if inspect.isgeneratorfunction(target) else "function"


def _hints(function: Any, who: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
    while isinstance(function, partial):
        function = function.func
    if inspect.isclass(function):
        function = function.__init__
    elif not inspect.isroutine(function):
        function = function.__call__
    try:
        return typing.get_type_hints(function, localns=dict(namespace), include_extras=True)
    except NameError as error:
        raise HandlerError(
            f"{who}: an annotation cannot be resolved ({error}); import it at run time, not under TYPE_CHECKING"
        ) from None


def _bare(annotation: Any) -> Any:
    bare = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    try:
        hash(bare)
    except TypeError:
        return object
    return bare


def _is_record(annotation: Any) -> bool:
    return isinstance(annotation, type) and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation))


def _validator(annotation: Any, parameter: str, who: str, resources: Resources) -> Validate | None:
    if annotation is Any or annotation is object:
        return None
    try:
        # The adapter's own method costs more than the validation of a number does.
        validate = TypeAdapter(annotation).validator.validate_python
        if any(annotation is scalar for scalar in SCALARS):
            return validate
        # outbox.add writes a model by the names of its fields, a writer in another language perhaps by its aliases.
        return partial(validate, by_alias=True, by_name=True)
    except (PydanticSchemaGenerationError, PydanticUserError):
        raise HandlerError(
            f"{who}: parameter {parameter!r} is annotated {shown(annotation)}, which is neither something "
            "a payload can hold nor injectable (Event, AsyncSession, Session, Context, and what the lifespan gives: "
            f"{resources.listed()})"
        ) from None


def _check_session(who: str, injected: Mapping[str, str], asynchronous: bool) -> None:
    if "session" in injected and asynchronous:
        raise HandlerError(
            f"{who} asks for a Session, which would block the event loop that an `async def` handler runs on: ask for "
            "AsyncSession"
        )
    if "async_session" in injected and not asynchronous:
        raise HandlerError(
            f"{who} asks for an AsyncSession, but a plain `def` handler runs in a thread: ask for Session"
        )
