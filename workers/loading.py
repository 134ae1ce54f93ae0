"""Finding an app by the text `module:name`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from outbox.errors import ConfigurationError
from workers.app import App


def load_app(target: str) -> App:
    """The app of `module:name`. The working directory goes to the end of the import path.

    Raises `ConfigurationError` when there is none; an error inside the module itself is not hidden.

    >>> load_app("shop.tasks:app").handlers.keys()
    dict_keys(['send_email'])
    """
    module_name, name = _parts(target)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise _no_module(error.name) from None
        raise
    app = getattr(module, name or "app", None)
    if not isinstance(app, App):
        raise ConfigurationError(f"{module_name} has no workers.App named {name or 'app'!r}")
    return app


def check_target(target: str) -> None:
    """Raise the `ConfigurationError` of `load_app` if there is no such module. Nothing is imported."""
    module_name, _ = _parts(target)
    found: ModuleSpec | None = None
    for end, part in enumerate(parts := module_name.split("."), 1):
        name = ".".join(parts[:end])
        if found is None:
            found = importlib.util.find_spec(part)
        elif found.submodule_search_locations is not None:
            found = PathFinder.find_spec(name, found.submodule_search_locations)
        else:
            found = None
        if found is None:
            raise _no_module(name)


def _parts(target: str) -> tuple[str, str]:
    """Module and name of a target; the working directory is on the import path from then on."""
    module_name, _, name = target.partition(":")
    if not module_name or not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigurationError(f"{target!r} is no MODULE:APP, such as shop.tasks:app")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    return module_name, name


def _no_module(name: str) -> ConfigurationError:
    return ConfigurationError(f"no module {name!r} on the import path or in {Path.cwd()}")
