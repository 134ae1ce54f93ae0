"""Test helpers that need workers and servers, beside those of `outbox.testing`, which need a session only.

>>> from outbox_testing import assert_added, assert_idempotent, drain, run
>>> assert await run(app, "send_email", {"user_id": 7}) == Done()

Every function that is awaited has a twin for tests without an event loop: `run_sync`, `run_twice_sync`,
`drain_sync`, `assert_idempotent_sync`. The fixtures are in `outbox_testing.plugin`, which pytest finds by itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outbox.testing import added, assert_added, assert_not_added
    from outbox_testing.concurrence import run_twice, run_twice_sync
    from outbox_testing.draining import Drained, DrainTimeoutError, drain, drain_sync
    from outbox_testing.idempotence import assert_idempotent, assert_idempotent_sync
    from outbox_testing.inline import run, run_sync

__all__ = [
    "DrainTimeoutError",
    "Drained",
    "added",
    "assert_added",
    "assert_idempotent",
    "assert_idempotent_sync",
    "assert_not_added",
    "drain",
    "drain_sync",
    "run",
    "run_sync",
    "run_twice",
    "run_twice_sync",
]

# pytest loads this package, for its plugin, also where nobody uses it: what is not used is not loaded.
_PLACES = {
    "added": "outbox.testing",
    "assert_added": "outbox.testing",
    "assert_not_added": "outbox.testing",
    "Drained": "outbox_testing.draining",
    "DrainTimeoutError": "outbox_testing.draining",
    "drain": "outbox_testing.draining",
    "drain_sync": "outbox_testing.draining",
    "assert_idempotent": "outbox_testing.idempotence",
    "assert_idempotent_sync": "outbox_testing.idempotence",
    "run": "outbox_testing.inline",
    "run_sync": "outbox_testing.inline",
    "run_twice": "outbox_testing.concurrence",
    "run_twice_sync": "outbox_testing.concurrence",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'outbox_testing' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value
