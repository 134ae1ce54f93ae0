"""The template: a data folder of PostgreSQL with all tables, of which each run begins with a copy."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import psycopg

from console.servers import Postgres
from outbox import migrations

DATABASE = "outbox"
TABLES = Path(__file__).with_name("tables.sql")
POSTGRES = {
    "max_connections": "200",
    "shared_buffers": "32MB",
    "max_wal_size": "64MB",
    # What is not flushed at COMMIT stays so for long: a crash takes it back.
    "wal_writer_delay": "2s",
}


class Template(NamedTuple):
    """The data folder of a PostgreSQL that has all tables and does not run, and that server's programs."""

    data: Path
    programs: Path


def make_template(folder: Path) -> Template:
    """Make a data folder with the outbox's tables and the business's."""
    server = Postgres(folder, durable=False, options=POSTGRES)
    with server:
        with psycopg.connect(server.url(), autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {DATABASE}")
        migrations.apply(server.url(DATABASE))
        with psycopg.connect(server.url(DATABASE)) as connection:
            connection.execute(TABLES.read_bytes())
            connection.execute("CHECKPOINT")
    return Template(server.data, server.bin)
