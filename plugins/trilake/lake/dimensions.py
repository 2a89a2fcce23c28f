"""Dimension tables: small tables of PostgreSQL that are written to the lake as a whole, without Spark."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

from trilake.errors import ConfigurationError, CountMismatchError
from trilake.lake.catalog import RUN_PROPERTY, ensure_namespace, naming_store, plan
from trilake.lake.data_set import CURATED_NAMESPACE, DataSet
from trilake.lake.dimension_columns import SourceChangedError, as_table, evolve
from trilake.postgres.columns import table_columns
from trilake.postgres.connection import listed, quote
from trilake.postgres.extract import read_tables

if TYPE_CHECKING:
    import pyarrow
    from psycopg2.extensions import connection as Connection
    from pyiceberg.catalog.sql import SqlCatalog

log = logging.getLogger(__name__)

# A larger table is not a dimension table, and is too large for the memory of one process.
MAX_ROWS = 1_000_000


def read_postgres(connection: Connection, table: str) -> pyarrow.Table:
    """A table, view or materialized view of PostgreSQL in Arrow, with the column types of `trilake.postgres.extract`.

    :raises ConfigurationError: no such table, a type without an equal in Arrow, or more than `MAX_ROWS` rows.
    :raises trilake.postgres.extract.ExtractError: the type of a column in Arrow cannot hold a value.
    """
    import pyarrow

    name = table if '"' in table else ".".join(map(quote, table.split(".")))
    with connection.cursor() as cursor:
        # the catalog, not information_schema: that has no materialized views
        columns = table_columns(cursor, name)
        query = f"SELECT {listed(list(columns))} FROM {name} LIMIT {MAX_ROWS + 1}"
        rows = pyarrow.concat_tables(read_tables(cursor, query))
    if rows.num_rows > MAX_ROWS:
        raise ConfigurationError(
            f"{table} has more than {MAX_ROWS} rows, too many for a dimension table.",
            hint="Give the data set a grain and a Spark job.",
        )
    return rows.cast(pyarrow.schema([field.with_nullable(not columns[field.name].not_null) for field in rows.schema]))


def replace_table(
    catalog: SqlCatalog,
    data_set: DataSet,
    connection: Connection,
    source: str,
    *,
    run_id: str,
    replace_columns: Collection[str] = (),
) -> tuple[int, int]:
    """Replace a dimension data set by a table of PostgreSQL. Returns the snapshot id and the number of its rows.

    The columns change in the same commit. New columns are added, and types become wider, as far as Iceberg can keep
    every value.

    :param replace_columns: columns that may be dropped, or get a type that does not hold their earlier values.
    :raises SourceChangedError: the source has other columns or types, and `replace_columns` does not name them. Nothing
        was written.
    :raises CountMismatchError: the snapshot does not hold what was read.
    :raises UnreachableError: the catalog or the store does not answer.
    """
    rows = read_postgres(connection, source)
    ensure_namespace(catalog, CURATED_NAMESPACE)
    with naming_store(catalog.properties, data_set.curated):
        table = catalog.create_table_if_not_exists(
            data_set.curated, schema=rows.schema, properties={"format-version": "2"}
        )
        with table.transaction() as change:
            with change.update_schema() as update:
                made = evolve(
                    update, rows.schema, table.schema(), name=data_set.curated, source=source, replaced=replace_columns
                )
            fitting = as_table(rows, change.table_metadata.schema())
            change.overwrite(fitting, snapshot_properties={RUN_PROPERTY: run_id})
        if made:
            log.warning("%s follows its source %s: %s", data_set.curated, source, "; ".join(made))
        table.refresh()
    written = plan(table, data_set, [])
    if written.rows != rows.num_rows:
        raise CountMismatchError(
            f"{data_set.curated}: {rows.num_rows} rows were read from {source}, but the lake holds {written.rows}.",
            hint="Run the task again.",
        )
    return written.snapshot_id, written.rows


__all__ = ["SourceChangedError", "read_postgres", "replace_table"]
