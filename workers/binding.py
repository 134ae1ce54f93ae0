"""A handler's parameters: what is injected by annotation, and what comes from the payload and how it is validated.

Rules. A parameter annotated with `Event`, `AsyncSession`, `Session`, `Context` or a type that the app's lifespan gives
is injected, whatever its name. Every other one takes the payload's key of its name, validated by pydantic against its
annotation. A missing key without a default is an error that names the field; a key that no parameter knows is ignored
(a newer writer), or goes into `**kwargs`. If a handler has exactly one payload parameter, annotated with a pydantic
model or a dataclass, and the payload has no key of its name, the parameter takes the whole payload.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from outbox.event import Event
from workers.context import Context
from workers.errors import HandlerError, PayloadMismatchError
from workers.resources import Resources, shown

INJECTABLE: dict[Any, str] = {
    Event: "event",
    list[Event]: "events",
    AsyncSession: "async_session",
    Session: "session",
    Context: "context",
}

NO_RESOURCES = Resources()

Validate = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Binding:
    """How one function is called. Made once by `compile`, used for every event."""

    name: str
    fields: tuple[tuple[str, Validate | None, bool], ...]
    """Payload parameters: name, validator (None takes the value as it is), and whether the key is required."""
    injected: Mapping[str, str]
    """Parameter name by injected kind: event, async_session, session, context."""
    whole: bool
    """The single payload parameter may take the whole payload."""
    rest: bool
    """The function takes `**kwargs`."""
    resources: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Type by the name of the parameter that is given what the lifespan has of it."""

    @property
    def transactional(self) -> bool:
        return "async_session" in self.injected or "session" in self.injected

    def bind(self, payload: Any) -> dict[str, Any]:
        """The arguments that come from the payload. Raises `PayloadMismatchError`."""
        if self.whole and not (isinstance(payload, dict) and self.fields[0][0] in payload):
            field, validate, _ = self.fields[0]
            return {field: self._validated(field, validate, payload, whole=True)}
        if not isinstance(payload, dict):
            raise PayloadMismatchError(
                f"the payload does not fit handler {self.name!r}: it is a {type(payload).__name__}, not an object"
            )
        bound = {}
        for field, validate, required in self.fields:
            if field in payload:
                value = payload[field]
                bound[field] = value if validate is None else self._validated(field, validate, value)
            elif required:
                raise PayloadMismatchError(
                    f"the payload does not fit handler {self.name!r}: field {field!r} is missing", field=field
                )
        if self.rest:
            taken = {*self.injected.values(), *self.resources}
            for field, value in payload.items():
                if field not in bound and field not in taken:
                    bound[field] = value
        return bound

    def _validated(self, field: str, validate: Validate | None, value: Any, whole: bool = False) -> Any:
        if validate is None:
            return value
        try:
            return validate(value)
        except ValidationError as error:
            # Only place and rule: the input itself may be confidential.
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            path = ".".join(str(part) for part in ((() if whole else (field,)) + first["loc"])) or field
            raise PayloadMismatchError(
                f"the payload does not fit handler {self.name!r}: field {path!r}: {first['msg']}", field=path
            ) from None


def compile(
    function: Callable[..., Any],
    name: str,
    namespace: Mapping[str, Any] | None = None,
    resources: Resources = NO_RESOURCES,
) -> Binding:
    """Read a function's signature. `namespace` helps to resolve string annotations, `resources` is what the app's
    lifespan gives. Raises `HandlerError`.

    >>> compile(send_email, "send_email").bind({"user_id": "7", "template": "welcome"})
    {'user_id': 7, 'template': 'welcome'}
    """
    hints = _hints(function, name, namespace)
    fields: list[tuple[str, Validate | None, bool]] = []
    injected: dict[str, str] = {}
    given: dict[str, Any] = {}
    whole = rest = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            rest = True
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise HandlerError(
                f"handler {name!r}: parameter {parameter.name!r} must be passable by name (no *args, no `/`)"
            )
        annotation = hints.get(parameter.name, Any)
        kind = INJECTABLE.get(_bare(annotation))
        if kind is not None:
            if kind in injected:
                raise HandlerError(f"handler {name!r} asks twice for {shown(annotation)}")
            injected[kind] = parameter.name
            continue
        if (bare := _bare(annotation)) in resources.ambiguous:
            raise HandlerError(
                f"handler {name!r}: parameter {parameter.name!r} asks for {shown(annotation)}, of which the lifespan "
                f"gives several: ask for {shown(resources.declared)}, or tell them apart by a typing.NewType"
            )
        if bare in resources.fields:
            given[parameter.name] = bare
            continue
        validate = _validator(annotation, parameter.name, name, resources)
        fields.append((parameter.name, validate, parameter.default is parameter.empty))
        whole = _is_record(_bare(annotation))
    _check_session(function, name, injected)
    return Binding(name, tuple(fields), injected, whole and len(fields) == 1 and not rest, rest, given)


def _hints(function: Callable[..., Any], name: str, namespace: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, localns=dict(namespace or {}), include_extras=True)
    except NameError as error:
        raise HandlerError(
            f"handler {name!r}: an annotation cannot be resolved ({error}); import it at run time, "
            "not under TYPE_CHECKING"
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


def _validator(annotation: Any, parameter: str, name: str, resources: Resources) -> Validate | None:
    if annotation is Any or annotation is object:
        return None
    try:
        # outbox.add writes a model by the names of its fields, a writer in another language perhaps by its aliases.
        return partial(TypeAdapter(annotation).validate_python, by_alias=True, by_name=True)
    except (PydanticSchemaGenerationError, PydanticUserError):
        raise HandlerError(
            f"handler {name!r}: parameter {parameter!r} is annotated {shown(annotation)}, which is neither something "
            "a payload can hold nor injectable (Event, AsyncSession, Session, Context, and what the lifespan gives: "
            f"{resources.listed()})"
        ) from None


def _check_session(function: Callable[..., Any], name: str, injected: Mapping[str, str]) -> None:
    asynchronous = inspect.iscoroutinefunction(function)
    if "session" in injected and asynchronous:
        raise HandlerError(
            f"handler {name!r} is `async def` and asks for a Session, which would block the event loop: "
            "ask for AsyncSession"
        )
    if "async_session" in injected and not asynchronous:
        raise HandlerError(f"handler {name!r} is a plain `def` and asks for an AsyncSession: ask for Session")
