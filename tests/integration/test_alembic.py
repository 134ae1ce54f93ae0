"""Alembic's autogenerate beside a migrated outbox schema."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, text

import outbox
from outbox import schema

Hook = Callable[[str | None, str, Mapping[str, str | None]], bool]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://", 1))
    yield engine
    engine.dispose()


def proposals(engine: Engine, metadata: list[MetaData], include_name: Hook | None) -> list[Any]:
    options: dict[str, Any] = {"include_schemas": True, "compare_type": True, "compare_server_default": True}
    with engine.connect() as connection, warnings.catch_warnings():
        warnings.simplefilter("error")
        context = MigrationContext.configure(connection, opts={**options, "include_name": include_name})
        return compare_metadata(context, metadata)  # type: ignore[arg-type]


def test_with_the_filter_autogenerate_sees_only_the_user_s_own_changes(engine: Engine) -> None:
    own = MetaData()
    Table("invoice", own, Column("id", Integer, primary_key=True))
    [(action, table)] = proposals(engine, [own, outbox.metadata], schema.include_name)
    assert (action, table.name) == ("add_table", "invoice")
    own.create_all(engine)
    assert proposals(engine, [own, outbox.metadata], schema.include_name) == []


def test_without_the_filter_it_would_drop_partitions_and_the_record_of_migrations(engine: Engine) -> None:
    dropped = {each[1].name for each in proposals(engine, [outbox.metadata], None) if each[0] == "remove_table"}
    assert {"migration", "event_default", "delivery_default"} < dropped
    assert any(name.startswith("event_p2") for name in dropped)


def test_the_filter_leaves_other_schemas_to_the_user(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE event_default (id integer)"))
    [(action, table)] = proposals(engine, [outbox.metadata], schema.include_name)
    assert (action, table.name) == ("remove_table", "event_default")


def test_a_difference_in_our_tables_would_be_seen(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE outbox.event DROP COLUMN headers"))
        connection.execute(text("DROP INDEX outbox.delivery_due"))
    found = proposals(engine, [outbox.metadata], schema.include_name)
    assert sorted(each[0] for each in found) == ["add_column", "add_index"]


def test_every_column_s_type_default_and_nullability_is_that_of_the_migration(engine: Engine) -> None:
    declared = {
        (table.name, column.name): (column.nullable, column.type.compile(engine.dialect).lower())
        for table in outbox.metadata.tables.values()
        for column in table.columns
    }
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT attrelid::regclass::text, attname, NOT attnotnull, format_type(atttypid, atttypmod)"
                "  FROM pg_attribute JOIN pg_class AS c ON c.oid = attrelid"
                " WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'p')"
                "   AND attnum > 0 AND NOT attisdropped"
            )
        )
        actual = {
            (table.removeprefix("outbox."), column): (nullable, kind)
            for table, column, nullable, kind in rows
            if table in outbox.metadata.tables
        }
    assert declared == actual
