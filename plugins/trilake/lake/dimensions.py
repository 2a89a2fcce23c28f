"""Whole small tables written to the lake without Spark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trilake.errors import ConfigurationError, CountMismatchError
from trilake.lake.catalog import RUN_PROPERTY, ensure_namespace, naming_store, plan
from trilake.lake.data_set import CURATED_NAMESPACE, DataSet

if TYPE_CHECKING:
    import pyarrow
    from psycopg2.extensions import connection as Connection
    from pyiceberg.catalog.sql import SqlCatalog

# A table that is larger is not a dimension, and does not belong in one process's memory.
MAX_ROWS = 1_000_000


def read_postgres(connection: Connection, table: str) -> pyarrow.Table:
    """A table of PostgreSQL in Arrow, typed by its columns.

    :raises ConfigurationError: no such table, a type that the lake has no equal of, or too many rows.
    """
    import pyarrow

    schema, _, name = table.rpartition(".")
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT column_name, data_type, is_nullable FROM information_schema.columns "
            "WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position",
            (schema or "public", name),
        )
        described = cursor.fetchall()
        if not described:
            raise ConfigurationError(
                f"PostgreSQL has no table {table}.", hint="Apply the migrations: `trilake migrate`."
            )
        fields = [
            pyarrow.field(column, _arrow_type(pyarrow, table, column, kind), nullable=nullable == "YES")
            for column, kind, nullable in described
        ]
        quoted = ", ".join('"' + column.replace('"', '""') + '"' for column, _, _ in described)
        where = ".".join('"' + part.replace('"', '""') + '"' for part in table.split("."))
        cursor.execute(f"SELECT {quoted} FROM {where} LIMIT {MAX_ROWS + 1}")
        rows = cursor.fetchall()
    if len(rows) > MAX_ROWS:
        raise ConfigurationError(f"{table} has more than {MAX_ROWS} rows.", hint="Give it a grain, and a Spark job.")
    names = [field.name for field in fields]
    return pyarrow.Table.from_pylist(
        [dict(zip(names, row, strict=True)) for row in rows], schema=pyarrow.schema(fields)
    )


def replace_table(
    catalog: SqlCatalog, data_set: DataSet, connection: Connection, source: str, *, run_id: str
) -> tuple[int, int]:
    """Replace a dimension data set by a table of PostgreSQL. Gives the snapshot and its rows.

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
            f"{data_set.curated}: {rows.num_rows} rows were read from {source}, the lake holds {written.rows}."
        )
    return written.snapshot_id, written.rows


def _arrow_type(pyarrow: Any, table: str, column: str, kind: str) -> Any:
    types = {
        "smallint": pyarrow.int32(),
        "integer": pyarrow.int32(),
        "bigint": pyarrow.int64(),
        "real": pyarrow.float32(),
        "double precision": pyarrow.float64(),
        "boolean": pyarrow.bool_(),
        "text": pyarrow.string(),
        "character varying": pyarrow.string(),
        "character": pyarrow.string(),
        "uuid": pyarrow.string(),
        "date": pyarrow.date32(),
        "timestamp with time zone": pyarrow.timestamp("us", tz="UTC"),
        "timestamp without time zone": pyarrow.timestamp("us"),
    }
    if kind not in types:
        raise ConfigurationError(
            f"{table}.{column} is {kind}, which the lake has no equal of.", hint="Cast it in a view, and read that."
        )
    return types[kind]
