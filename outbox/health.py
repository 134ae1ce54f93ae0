"""Whether a process lives and is ready: its loop turns, and the servers that it needs answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import TypeAlias

import redis

from outbox import database
from outbox.errors import OutboxError
from outbox.fresh import Fresh
from outbox.migrations.script import latest
from outbox.redis import connect
from outbox.settings import Settings

Findings: TypeAlias = dict[str, str | None]
"""What was looked at; None where it is fine, else what is wrong."""

Check: TypeAlias = Callable[[], Findings]

STUCK_AFTER = 120.0
"""Seconds after which a loop that does not turn is taken for stuck. What is killed for it by mistake costs more than
what is found a minute later."""

KEEP = 2.0
"""Seconds for which an answer of the servers is kept: probes of many must cost no more than those of one."""

WITHIN = 3.0
"""Seconds that servers get to answer."""

BEAT_EVERY = 1.0


class Pulse:
    """Shows that a loop turns.

    >>> pulse = Pulse()
    >>> pulse.beat()
    >>> pulse.findings()
    {'loop': None}
    """

    def __init__(self) -> None:
        self._beaten = time.monotonic()

    def beat(self) -> None:
        """The loop has turned."""
        self._beaten = time.monotonic()

    def rest(self) -> None:
        """The loop will not turn for as long as it takes, and that is fine; until the next beat."""
        self._beaten = math.inf

    def keep(self) -> None:
        """Beat with the running event loop from now on."""
        self.beat()
        asyncio.get_running_loop().call_later(BEAT_EVERY, self.keep)

    def findings(self, now: float | None = None) -> Findings:
        """Whether it turns. `now` is by the monotonic clock."""
        silent = (time.monotonic() if now is None else now) - self._beaten
        return {"loop": f"has not turned for {silent:.0f} s" if silent > STUCK_AFTER else None}


class Servers:
    """Whether PostgreSQL and Redis answer and the schema fits. `direct` asks PostgreSQL as the relay does.

    >>> Servers(settings).findings()
    {'postgresql': None, 'schema': None, 'redis': None}
    """

    def __init__(self, settings: Settings, *, direct: bool = False) -> None:
        self._url = settings.libpq_url(direct=direct)
        self._redis_url = settings.redis_url.get_secret_value()
        self._schema = settings.schema_name
        self._postgresql = Fresh(self._ask_postgresql, keep=KEEP, within=WITHIN)
        self._redis = Fresh(self._ask_redis, keep=KEEP, within=WITHIN)

    def findings(self) -> Findings:
        """What is wrong with each, in one line without a password."""
        self._redis.begin()
        silent = f"no answer within {WITHIN:g} s"
        postgresql = self._postgresql.get() or {"postgresql": silent, "schema": "not known"}
        return postgresql | (self._redis.get() or {"redis": silent})

    def _ask_postgresql(self) -> Findings:
        try:
            with database.opened(self._url, self._schema) as (connection, schema):
                row = connection.execute(
                    f"SELECT coalesce(max(version), 0) FROM {schema}.migration".encode()
                ).fetchone()
        except database.UnreachableError as error:
            return {"postgresql": str(error), "schema": "not known"}
        except OutboxError as error:
            return {"postgresql": None, "schema": str(error)}
        except Exception as error:
            if (line := database.refused(error)) is not None:
                return {"postgresql": None, "schema": line}
            return {"postgresql": type(error).__name__, "schema": "not known"}
        older = row is None or row[0] < latest()
        return {"postgresql": None, "schema": "of an older release: run `outbox migrate`" if older else None}

    def _ask_redis(self) -> Findings:
        try:
            with connect(self._redis_url, timeout=WITHIN) as client:
                client.ping()
        except (redis.RedisError, OSError) as error:
            # Its message may quote what it was sent.
            return {"redis": f"{type(error).__name__}: check OUTBOX_REDIS_URL and that the server runs"}
        return {"redis": None}
