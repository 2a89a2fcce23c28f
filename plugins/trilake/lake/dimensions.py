"""Dimension tables: small tables of PostgreSQL that are written to the lake as a whole, without Spark."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trilake.errors import ConfigurationError, CountMismatchError
from trilake.lake.catalog import RUN_PROPERTY, ensure_namespace, naming_store, plan
from trilake.lake.data_set import CURATED_NAMESPACE, DataSet
from trilake.postgres.connection import listed, quote
from trilake.postgres.extract import read_tables

if TYPE_CHECKING:
    import pyarrow
    from psycopg2.extensions import connection as Connection
    from pyiceberg.catalog.sql import SqlCatalog

# A larger table is not a dimension table, and is too large for the memory of one process.
MAX_ROWS = 1_000_000


def read_postgres(connection: Connection, table: str) -> pyarrow.Table:
    """A table of PostgreSQL in Arrow, with the column types of `trilake.postgres.extract`.

    :raises ConfigurationError: no such table, a type without an equal in Arrow, or more than `MAX_ROWS` rows.
    :raises trilake.postgres.extract.ExtractError: the type of a column in Arrow cannot hold a value.
    """
    import pyarrow

    schema, _, name = table.rpartition(".")
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT column_name, is_nullable FROM information_schema.columns "
            "WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position",
            (schema or "public", name),
        )
        nullable = {column: answer == "YES" for column, answer in cursor.fetchall()}
        if not nullable:
            raise ConfigurationError(
                f"PostgreSQL has no table {table}.", hint="Apply the migrations: `trilake migrate`."
            )
        where = ".".join(map(quote, table.split(".")))
        query = f"SELECT {listed(list(nullable))} FROM {where} LIMIT {MAX_ROWS + 1}"
        rows = pyarrow.concat_tables(read_tables(cursor, query))
    if rows.num_rows > MAX_ROWS:
        raise ConfigurationError(
            f"{table} has more than {MAX_ROWS} rows, too many for a dimension table.",
            hint="Give the data set a grain and a Spark job.",
        )
    return rows.cast(pyarrow.schema([field.with_nullable(nullable[field.name]) for field in rows.schema]))


def replace_table(
    catalog: SqlCatalog, data_set: DataSet, connection: Connection, source: str, *, run_id: str
) -> tuple[int, int]:
    """Replace a dimension data set by a table of PostgreSQL. Returns the snapshot id and the number of its rows.

    :raises CountMismatchError: the snapshot does not hold what was read.
    :raises UnreachableError: the catalog or the store does not answer.
    """
    rows = read_postgres(connection, source)
    ensure_namespace(catalog, CURATED_NAMESPACE)
    with naming_store(catalog.properties, data_set.curated):
        table = catalog.create_table_if_not_exists(
            data_set.curated, schema=rows.schema, properties={"format-version": "2"}
        )
        with table.update_schema() as update:
            update.union_by_name(rows.schema)
        table.overwrite(rows, snapshot_properties={RUN_PROPERTY: run_id})
        table.refresh()
    written = plan(table, data_set, [])
    if written.rows != rows.num_rows:
        raise CountMismatchError(
            f"{data_set.curated}: {rows.num_rows} rows were read from {source}, but the lake holds {written.rows}.",
            hint="Run the task again.",
        )
    return written.snapshot_id, written.rows
