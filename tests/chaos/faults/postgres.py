"""Faults of PostgreSQL, and of its clock."""

from __future__ import annotations

import contextlib
import signal
from functools import partial

import psycopg

from tests.chaos.cluster import Cluster, let_go_on, runs
from tests.chaos.faults.ground import Undo, fill, freeze, kind, start_relays
from tests.chaos.schedule import RELAYS, Fault


@kind("terminate backends")
def terminate_backends(cluster: Cluster, fault: Fault) -> None:
    """Every connection to the database ends."""
    with cluster.sql() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@kind("postgres restart")
def postgres_restart(cluster: Cluster, fault: Fault) -> Undo:
    """An immediate shutdown, or kill -9: what was not flushed is gone."""
    cluster.crashes += 1
    let_go_on(cluster.postgres)
    cluster.postgres.stop(signal.SIGQUIT if fault.chance < 0.5 else signal.SIGKILL)
    return cluster.start_postgres


@kind("postgres freeze")
def postgresfreeze(cluster: Cluster, fault: Fault) -> Undo:
    """The server and all of its processes stand still."""
    return freeze(cluster.postgres)


@kind("postgres disk full")
def postgres_disk_full(cluster: Cluster, fault: Fault) -> Undo:
    """Nothing more fits on its disk; for lack of space it may crash."""
    empty = fill(cluster.postgres.folder)

    def heal() -> None:
        empty()
        if not runs(cluster.postgres):
            cluster.crashes += 1
        cluster.start_postgres()

    return heal


@kind("clock ahead")
def clock_ahead(cluster: Cluster, fault: Fault) -> Undo:
    """The clock jumps an hour ahead, the relay takes a tick and dies, and the clock is right again."""
    for name in RELAYS:
        cluster.programs[name].kill()
    with contextlib.suppress(psycopg.OperationalError), cluster.sql() as connection:
        connection.execute(
            "INSERT INTO outbox.tick (id, snapshot, created_at)"
            " SELECT max(id) + 3600000, pg_current_snapshot(), clock_timestamp() + interval '1 hour' FROM outbox.tick"
        )
    return partial(start_relays, cluster)
