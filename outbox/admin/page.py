"""What a listing found, and how far it looked: no listing reads more than so many rows, however rare what it wants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

import psycopg

T = TypeVar("T")

LISTED = 100_000
"""Events, or dead letters, that a listing looks through at the most, the latest first."""


class Page(list[T]):
    """The rows that were found. `reached` is the time of the first one that was not looked at any more: what is older
    may fit as well. It is None when everything that could fit was looked at, or the limit was reached before.

    >>> events("postgresql:///shop", Selection(key="customer-7")).reached
    datetime.datetime(2026, 1, 31, 11, 20, 4, tzinfo=datetime.timezone.utc)
    """

    reached: datetime | None = None


@contextmanager
def by_index(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Reads by index, also before PostgreSQL has counted what is in a table: then it would rather scan all of it.

    In a transaction that is rolled back, so that the settings are gone with it, on a connection of yours too.
    """
    with connection.transaction(force_rollback=True):
        connection.execute(
            "SELECT set_config(name, 'off', true) FROM unnest('{enable_seqscan,enable_bitmapscan,jit}'::text[]) AS name"
        )
        yield
